import { Controller } from '@nestjs/common';
import { EventPattern, MessagePattern, Payload, RpcException } from '@nestjs/microservices';
import { from, Observable } from 'rxjs';

interface Amount {
  sku: string;
  count: number;
}

interface Level {
  sku: string;
  left: number;
}

@Controller()
export class Warehouse {
  private readonly stock = new Map([['mug', 10], ['tea', 3]]);

  @MessagePattern({ cmd: 'stock' })
  available(@Payload() sku: string): number {
    return this.find(sku);
  }

  @MessagePattern('stock.reserve')
  reserve(@Payload() { sku, count }: Amount): Level {
    const missing = count - this.find(sku);
    if (missing > 0) {
      const code = 'FAILED_PRECONDITION';
      throw new RpcException({ status: 'error', message: 'not enough', code, details: { missing } });
    }
    const left = this.find(sku) - count;
    this.stock.set(sku, left);
    return { sku, left };
  }

  @MessagePattern('stock.list')
  list(): Observable<Level> {
    return from([...this.stock].map(([sku, left]) => ({ sku, left })));
  }

  @EventPattern('stock.delivered')
  delivered(@Payload() { sku, count }: Amount): void {
    this.stock.set(sku, (this.stock.get(sku) ?? 0) + count);
  }

  private find(sku: string): number {
    const left = this.stock.get(sku);
    if (left === undefined) {
      throw new RpcException({ status: 'error', message: 'no such article', code: 'NOT_FOUND' });
    }
    return left;
  }
}
