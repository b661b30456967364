//! One method per message and event.

use contracts::{
    Actor, Page, Reason, Role,
    order::OrderConfirmed,
    product::{
        Category, CreateCategory, CreateProduct, GetProduct, GetStock, ImportProducts, Imported,
        ListCategories, ListProducts, Product, ProductCard, ProductStatus, QuoteLines, QuotedLines,
        ReleaseStock, Released, Reservation, ReserveStock, Stock, UpdateProduct,
    },
    review::ReviewPublished,
};
use nestling::{Context, RpcError, controller};

use crate::{stock::StockStore, store::ProductStore};

pub(crate) struct ProductController {
    pub(crate) products: ProductStore,
    pub(crate) stock: StockStore,
}

const EDITORS: [Role; 2] = [Role::Manager, Role::Admin];

#[controller]
impl ProductController {
    #[message_pattern]
    async fn list(
        &self,
        request: ListProducts,
        actor: Option<Actor>,
    ) -> Result<Page<ProductCard>, RpcError> {
        request.validate()?;
        let is_editor = actor.is_some_and(|actor| actor.is_any(&EDITORS));
        if !is_editor
            && request
                .status
                .is_some_and(|status| status != ProductStatus::Active)
        {
            return Err(Reason::Forbidden.error("only managers see what is not sold"));
        }
        self.products.list(&request).await
    }

    #[message_pattern]
    async fn get(&self, request: GetProduct, actor: Option<Actor>) -> Result<Product, RpcError> {
        let product = self.products.get(&request.key).await?;
        let is_editor = actor.is_some_and(|actor| actor.is_any(&EDITORS));
        if product.status == ProductStatus::Draft && !is_editor {
            return Err(Reason::NotFound.error("no such product"));
        }
        Ok(product)
    }

    #[message_pattern]
    async fn create(&self, request: CreateProduct, actor: Actor) -> Result<Product, RpcError> {
        actor.require(&EDITORS)?;
        self.products.create(&request).await
    }

    #[message_pattern]
    async fn update(&self, request: UpdateProduct, actor: Actor) -> Result<Product, RpcError> {
        actor.require(&EDITORS)?;
        self.products.update(&request).await
    }

    #[message_pattern]
    async fn import(&self, request: ImportProducts, actor: Actor) -> Result<Imported, RpcError> {
        actor.require(&EDITORS)?;
        self.products.import(&request).await
    }

    #[message_pattern]
    async fn list_categories(&self, _: ListCategories) -> Result<Vec<Category>, RpcError> {
        self.products.categories().await
    }

    #[message_pattern]
    async fn create_category(
        &self,
        request: CreateCategory,
        actor: Actor,
    ) -> Result<Category, RpcError> {
        actor.require(&EDITORS)?;
        self.products.create_category(&request).await
    }

    #[message_pattern]
    async fn quote(&self, request: QuoteLines) -> Result<QuotedLines, RpcError> {
        self.products.quote(&request.lines).await
    }

    #[message_pattern]
    async fn stock(&self, request: GetStock) -> Result<Vec<Stock>, RpcError> {
        self.stock.get(&request.product_ids).await
    }

    #[message_pattern]
    async fn reserve(&self, request: ReserveStock) -> Result<Reservation, RpcError> {
        self.stock.reserve(&request).await
    }

    #[message_pattern]
    async fn release(&self, request: ReleaseStock) -> Result<Released, RpcError> {
        self.stock.release(request.order_id, &request.reason).await
    }

    #[event_pattern]
    async fn order_confirmed(&self, event: OrderConfirmed, cx: Context) -> Result<(), RpcError> {
        self.stock.commit(&event, &cx).await
    }

    #[event_pattern]
    async fn review_published(&self, event: ReviewPublished) -> Result<(), RpcError> {
        self.products.rate(&event.summary).await
    }
}
