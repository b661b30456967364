use contracts::{
    ProductId, Reason, UserId,
    order::{Cart, ClearCart, GetCart, Owner, PutCartLine, QuoteCart},
    product::Fulfilment,
};
use nestling::Code;

use crate::shop::{Shop, actor, ada, reason};

fn owner(token: &str) -> Owner {
    Owner::Anon(token.to_owned())
}

fn quantities(cart: &Cart) -> Vec<(ProductId, u32)> {
    cart.lines
        .iter()
        .map(|line| (line.product_id, line.qty))
        .collect()
}

#[tokio::test]
async fn a_cart_is_priced_when_it_is_read() {
    let shop = Shop::open().await;
    let (lamp, song) = (
        shop.add_product("lamp", 5),
        shop.peers
            .add_product("song", 99, 1000, Fulfilment::Digital),
    );
    assert_eq!(shop.cart(&ada()).await.lines, []);
    shop.put(&ada(), lamp, 2).await;
    let cart = shop.put(&ada(), song, 1).await;
    assert_eq!(quantities(&cart), [(lamp, 2), (song, 1)]);
    let sums = [cart.items_net, cart.tax, cart.gross].map(|money| money.amount);
    assert_eq!(sums, [2099, 399, 2498]);
    assert_eq!(
        (cart.lines[0].available, cart.lines[0].price_changed),
        (5, false)
    );
    assert_eq!(cart.version, 2);

    shop.peers
        .add_product("lamp", 1100, 5, Fulfilment::Physical);
    let cart = shop.cart(&ada()).await;
    assert!(cart.lines[0].price_changed && !cart.lines[1].price_changed);
    assert_eq!(cart.lines[0].line_net.amount, 2200);
    // Putting it in again accepts the price.
    assert!(!shop.put(&ada(), lamp, 3).await.lines[0].price_changed);

    shop.peers.remove_product(song);
    let cart = shop.cart(&ada()).await;
    assert_eq!((cart.lines[1].available, cart.items_net.amount), (0, 3300));
    let quote = QuoteCart {
        owner: Owner::User(ada().user_id),
        ship_to: None,
        shipping_option: None,
    };
    assert_eq!(
        reason(&shop.send(&ada(), quote).await.unwrap_err()),
        Reason::NotFound
    );

    assert_eq!(quantities(&shop.put(&ada(), song, 0).await), [(lamp, 3)]);
    let clear = ClearCart {
        owner: Owner::User(ada().user_id),
    };
    assert_eq!(shop.send(&ada(), clear).await.unwrap().lines, []);
}

#[tokio::test]
async fn a_cart_belongs_to_its_user_or_to_whoever_has_its_token() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    let theirs = GetCart {
        owner: Owner::User(UserId::derive("eve")),
    };
    assert_eq!(
        reason(&shop.send(&ada(), theirs.clone()).await.unwrap_err()),
        Reason::Forbidden
    );
    assert_eq!(
        reason(&shop.client.send(theirs.clone()).await.unwrap_err()),
        Reason::Unauthenticated
    );
    let support = actor(UserId::derive("sam"), contracts::Role::Support);
    assert!(shop.send(&support, theirs).await.is_ok());

    let put = PutCartLine {
        owner: owner("token-1"),
        product_id: lamp,
        qty: 1,
    };
    assert_eq!(shop.client.send(put).await.unwrap().lines.len(), 1);
    let get = |token| {
        shop.client.send(GetCart {
            owner: owner(token),
        })
    };
    assert_eq!(get("token-1").await.unwrap().lines.len(), 1);
    assert_eq!(get("token-2").await.unwrap().lines.len(), 0);
    assert_eq!(reason(&get("").await.unwrap_err()), Reason::Validation);
}

#[tokio::test]
async fn what_a_cart_cannot_hold_is_refused() {
    let shop = Shop::open().await;
    let put = |product_id, qty| {
        shop.client.send(PutCartLine {
            owner: owner("token"),
            product_id,
            qty,
        })
    };
    let lamp = shop.add_product("lamp", 5);
    assert_eq!(
        reason(&put(lamp, 100).await.unwrap_err()),
        Reason::Validation
    );
    assert_eq!(
        reason(&put(ProductId::derive("none"), 1).await.unwrap_err()),
        Reason::NotFound
    );
    for number in 0..100 {
        put(shop.add_product(&format!("p{number}"), 1), 1)
            .await
            .unwrap();
    }
    assert_eq!(reason(&put(lamp, 1).await.unwrap_err()), Reason::Validation);
    let again = shop.add_product("p7", 1);
    assert_eq!(put(again, 2).await.unwrap().lines.len(), 100);

    shop.peers.set_down("product.quote", true);
    assert_eq!(put(again, 1).await.unwrap_err().code, Code::Unavailable);
}
