//! Real data in a running shop: the file becomes catalogue and history, and what is in it can be bought.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::{fs, time::Duration};

use contracts::{
    ProductId, UserId,
    order::{ListOrders, OrderStatus},
    product::{GetProduct, ProductKey},
    recommendation::RecommendForProduct,
};
use nestling::transport::Memory;
use shop::{Layout, Shop, Staff, import};

const FILE: &str = "\
InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
1,10001,Red lantern,2,2011-01-01 10:00:00,2.50,7,United Kingdom
1,10002,Blue lantern,1,2011-01-01 10:00:00,3.00,7,United Kingdom
2,10001,Red lantern,1,2011-01-02 10:00:00,2.50,8,United Kingdom
2,10002,Blue lantern,1,2011-01-02 10:00:00,3.00,8,United Kingdom
C3,10001,Red lantern,-1,2011-01-03 10:00:00,2.50,7,United Kingdom
4,POST,Postage,1,2011-01-04 10:00:00,18.00,7,France
5,10003,Nothing,1,2011-01-04 10:00:00,free,7,France
";

#[tokio::test]
async fn real_data_becomes_catalogue_history_and_recommendations_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("retail.csv");
    fs::write(&file, FILE).unwrap();
    let memory = Memory::new();
    let shop = Shop::start(&Layout::new(&memory, &memory)).await.unwrap();
    let staff = Staff::connect(&memory).await.unwrap();

    let retail = import::read(&file).unwrap();
    assert_eq!((retail.report.sales, retail.report.bad), (4, 1));
    // A second run without its notes changes nothing.
    for state in ["first.json", "second.json"] {
        let state = folder.path().join(state);
        import::send(&retail, &staff, &staff, "test", &state)
            .await
            .unwrap();
    }

    let red = ProductId::derive("10001");
    let key = ProductKey::Id(red);
    let product = shop.clients.product.send(GetProduct { key }).await.unwrap();
    assert_eq!((product.card.net.amount, product.on_hand), (250, 1_000));

    let mine = ListOrders {
        user_id: Some(UserId::derive("retail-7")),
        ..ListOrders::default()
    };
    let orders = staff.send(mine).await.unwrap().items;
    assert_eq!(orders.len(), 1);
    assert_eq!(orders[0].status, OrderStatus::Completed);
    assert_eq!(orders[0].totals.items_net.amount, 800);

    let learned = async {
        loop {
            let request = RecommendForProduct {
                product_id: red,
                limit: 5,
            };
            let found = shop.clients.recommendation.send(request).await.unwrap();
            if found.strategy == "together" {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), learned)
        .await
        .unwrap();
    assert_eq!(found.items[0].product_id, ProductId::derive("10002"));
    shop.shutdown().await;
}
