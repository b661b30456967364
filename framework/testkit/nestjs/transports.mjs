// What the transports of NestJS do not have in common: options, metadata, and what "listening" comes to.

import { setTimeout } from 'node:timers/promises';

import { headers as natsHeaders } from '@nats-io/transport-node';
import { NatsRecordBuilder, Transport } from '@nestjs/microservices';
import { Kafka, logLevel } from 'kafkajs';

/** How long a broker may take to know its new topics, in milliseconds. */
const TOPICS_LIMIT = 30_000;

/**
 * The transport that a URL names.
 *
 * `run` is in every name that a broker keeps, so that runs on one broker do not meet.
 */
export function transport(url, run) {
  const { protocol, hostname, port } = new URL(url);
  const open = { 'tcp:': tcp, 'redis:': redis, 'nats:': nats, 'kafka:': kafka }[protocol];
  if (!open) {
    throw new Error(`no such transport: ${url}`);
  }
  return { scheme: protocol.slice(0, -1), ...open({ host: hostname, port: Number(port), run }) };
}

function tcp({ host, port }) {
  const config = { transport: Transport.TCP, options: { host, port } };
  return {
    server: () => config,
    client: () => config,
    attach: inPacket,
    metadata: (context) => context.getMetadata() ?? null,
    destination: (context) => context.getPattern(),
    // The port may have been any free one.
    listening: async (server) => ({ url: `tcp://${host}:${server.address().port}` }),
  };
}

function redis({ host, port }) {
  const options = { host, port };
  return {
    server: ({ wildcards }) => ({ transport: Transport.REDIS, options: { ...options, wildcards } }),
    client: () => ({ transport: Transport.REDIS, options }),
    attach: inPacket,
    metadata: (context) => context.getMetadata() ?? null,
    destination: (context) => context.getChannel(),
    // NestJS does not wait for its subscriptions; Redis answers in order.
    listening: async ([, subscriber]) => void (await subscriber.ping()),
  };
}

function nats({ host, port, run }) {
  const options = { servers: [`nats://${host}:${port}`] };
  return {
    server: () => ({ transport: Transport.NATS, options: { ...options, queue: run } }),
    client: () => ({ transport: Transport.NATS, options }),
    attach: (data, entries) => {
      const headers = natsHeaders();
      Object.entries(entries).forEach(([name, value]) => headers.set(name, value));
      return { data: new NatsRecordBuilder(data).setHeaders(headers).build() };
    },
    metadata: (context) => {
      const headers = context.getHeaders();
      return headers ? Object.fromEntries(headers.keys().map((name) => [name, headers.get(name)])) : null;
    },
    destination: (context) => context.getSubject(),
    // NestJS does not wait for its subscriptions; a server answers in order.
    listening: async (connection) => void (await connection.flush()),
  };
}

function kafka({ host, port, run }) {
  const client = { brokers: [`${host}:${port}`], clientId: run, logLevel: logLevel.ERROR };
  const options = {
    client,
    consumer: { groupId: run },
    // Topics are new in every run; whoever starts at their ends may miss what comes while it does.
    subscribe: { fromBeginning: true },
  };
  return {
    server: () => ({ transport: Transport.KAFKA, options }),
    client: () => ({ transport: Transport.KAFKA, options }),
    attach: (value, headers) => ({ data: { value, headers } }),
    metadata: (context) => context.getMessage().headers,
    destination: (context) => context.getTopic(),
    listening: async () => {},
    /** Makes topics, as a broker in production does not make them by itself. */
    prepare: (topics) => createTopics(client, topics),
  };
}

/** Metadata is given to the packet itself, which only the dispatch hook gets to see. */
function inPacket(data, metadata) {
  return { data, metadata };
}

async function createTopics(client, names) {
  const admin = new Kafka(client).admin();
  await admin.connect();
  try {
    const topics = names.map((topic) => ({ topic, numPartitions: 1, replicationFactor: 1 }));
    await admin.createTopics({ topics, waitForLeaders: false });
    // What kafkajs has for this gives up at a broker that has not heard of its topics yet.
    const deadline = Date.now() + TOPICS_LIMIT;
    while (!(await knows(admin, names)) && Date.now() < deadline) {
      await setTimeout(20);
    }
  } finally {
    await admin.disconnect();
  }
}

async function knows(admin, topics) {
  try {
    await admin.fetchTopicMetadata({ topics });
    return true;
  } catch (error) {
    if (error.type === 'UNKNOWN_TOPIC_OR_PARTITION') {
      return false;
    }
    throw error;
  }
}
