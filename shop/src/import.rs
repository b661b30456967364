//! `shop import online-retail`: real transactions of a gift shop become catalogue, stock and
//! purchase history.
//!
//! The data is Chen, D. (2015), *Online Retail*, UCI Machine Learning Repository, CC BY 4.0.
//! Amounts are taken over as minor units of the shop's currency.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use anyhow::Context as _;
use contracts::{
    Currency, Money, ProductId, TaxRate, Timestamp, UserId,
    order::{ImportOrders, ImportedLine, ImportedOrder},
    product::{
        CreateCategory, Fulfilment, ImportProducts, ImportedProduct, ProductDraft, ProductStatus,
    },
};

use crate::{progress::Done, staff::Staff};

/// How many bad lines are listed; all are counted.
const MOST_LISTED: usize = 20;
const PRODUCTS_PER_BATCH: usize = 250;
const ORDERS_PER_BATCH: usize = 100;
/// Keeps a message well below a megabyte, the smallest limit of our transports.
const LINES_PER_BATCH: usize = 1_500;
/// Each product starts with so many on hand.
const ON_HAND: u32 = 1_000;

/// A line of the file.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    invoice_no: String,
    stock_code: String,
    description: String,
    quantity: i64,
    invoice_date: String,
    unit_price: String,
    #[serde(rename = "CustomerID")]
    customer_id: String,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Retail {
    /// By sku.
    products: BTreeMap<String, Goods>,
    /// In the order of the file.
    invoices: Vec<Invoice>,
    /// How the lines were judged.
    pub report: Report,
}

/// How the lines of a file were judged.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// All lines.
    pub lines: u64,
    /// Sales of goods.
    pub sales: u64,
    /// Returned goods that were found in an earlier order of the same customer.
    pub returns: u64,
    /// Returned goods that were not.
    pub unmatched_returns: u64,
    /// Postage, fees and other lines that are no goods.
    pub not_goods: u64,
    /// Lines that make no sense.
    pub bad: u64,
    /// The first of them: line number and what is wrong.
    pub bad_lines: Vec<(u64, String)>,
}

#[derive(Debug, Default)]
struct Goods {
    name: String,
    /// How often it was sold at which price.
    prices: HashMap<i64, u32>,
}

#[derive(Debug)]
struct Invoice {
    number: String,
    customer: String,
    at: Timestamp,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    sku: String,
    qty: u32,
    price: i64,
    returned: u32,
}

/// What a good line says.
struct Sale {
    sku: String,
    name: String,
    quantity: i64,
    price: i64,
    at: Timestamp,
}

/// Reads a file, plain or `.xz`.
///
/// # Errors
/// When it cannot be read, or its header is another. Bad lines are no error; see [`Report`].
pub fn read(path: &Path) -> anyhow::Result<Retail> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "xz");
    let text: Box<dyn Read> = match is_packed {
        true => Box::new(liblzma::read::XzDecoder::new(BufReader::new(file))),
        false => Box::new(BufReader::new(file)),
    };
    parse(text)
}

fn parse(text: impl Read) -> anyhow::Result<Retail> {
    let mut reader = csv::Reader::from_reader(text);
    let headers = reader.headers().context("read the header")?;
    for name in [
        "InvoiceNo",
        "StockCode",
        "Description",
        "Quantity",
        "InvoiceDate",
        "UnitPrice",
        "CustomerID",
    ] {
        anyhow::ensure!(
            headers.iter().any(|header| header == name),
            "the file has no column {name}"
        );
    }
    let mut retail = Retail::default();
    let mut by_number: HashMap<String, usize> = HashMap::new();
    // The invoices of each customer that hold a product, oldest first.
    let mut bought: HashMap<(String, String), Vec<usize>> = HashMap::new();
    for (record, line) in reader.deserialize::<Record>().zip(2_u64..) {
        retail.report.lines += 1;
        let record = match record {
            Ok(record) => record,
            Err(error) if matches!(error.kind(), csv::ErrorKind::Io(_)) => {
                return Err(error).context("read the file");
            }
            Err(error) => {
                retail.report.bad_line(line, error.to_string());
                continue;
            }
        };
        if !is_goods(&record.stock_code) {
            retail.report.not_goods += 1;
            continue;
        }
        let sale = match record.sale() {
            Ok(sale) => sale,
            Err(wrong) => {
                retail.report.bad_line(line, wrong);
                continue;
            }
        };
        let customer = match record.customer_id.as_str() {
            "" => format!("guest of {}", record.invoice_no),
            id => id.to_owned(),
        };
        if record.invoice_no.starts_with('C') || sale.quantity < 0 {
            let invoices = bought.get(&(customer, sale.sku.clone()));
            retail.give_back(invoices.map_or(&[], Vec::as_slice), &sale);
            continue;
        }
        retail.report.sales += 1;
        let goods = retail.products.entry(sale.sku.clone()).or_default();
        goods.name.clone_from(&sale.name);
        *goods.prices.entry(sale.price).or_default() += 1;
        let index = *by_number
            .entry(record.invoice_no.clone())
            .or_insert_with(|| {
                let (number, customer) = (record.invoice_no.clone(), customer.clone());
                retail.invoices.push(Invoice {
                    number,
                    customer,
                    at: sale.at,
                    lines: Vec::new(),
                });
                retail.invoices.len() - 1
            });
        bought
            .entry((customer, sale.sku.clone()))
            .or_default()
            .push(index);
        let qty = u32::try_from(sale.quantity).unwrap_or(u32::MAX);
        retail.invoices[index].lines.push(Line {
            sku: sale.sku,
            qty,
            price: sale.price,
            returned: 0,
        });
    }
    Ok(retail)
}

/// Goods have codes of five digits and perhaps a letter; postage, fees and corrections have words.
fn is_goods(code: &str) -> bool {
    code.len() >= 5 && code.bytes().take(5).all(|byte| byte.is_ascii_digit())
}

impl Record {
    fn sale(&self) -> Result<Sale, String> {
        let price = minor_units(&self.unit_price)
            .ok_or_else(|| format!("{:?} is not a price", self.unit_price))?;
        if price <= 0 {
            return Err(format!("price {}", self.unit_price));
        }
        if self.quantity == 0 || self.quantity.unsigned_abs() > 1_000_000 {
            return Err(format!("quantity {}", self.quantity));
        }
        let name = self.description.trim();
        if name.is_empty() || self.invoice_no.is_empty() {
            return Err("no description or invoice".to_owned());
        }
        // The services' own limits: one odd line must not hold up a batch.
        if name.chars().count() > 200
            || self.stock_code.len() > 64
            || self.invoice_no.len() > 50
            || price > 100_000_000
        {
            return Err("longer or dearer than anything we sell".to_owned());
        }
        let at = timestamp(&self.invoice_date)
            .ok_or_else(|| format!("{:?} is not a time", self.invoice_date))?;
        let sku = self.stock_code.to_uppercase();
        Ok(Sale {
            sku,
            name: name.to_owned(),
            quantity: self.quantity,
            price,
            at,
        })
    }
}

/// `2.55` as 255; no floats on the way.
fn minor_units(text: &str) -> Option<i64> {
    let (whole, cents) = text.split_once('.').unwrap_or((text, ""));
    let cents = match cents.len() {
        0 => 0,
        1 => cents.parse::<u8>().ok()? * 10,
        2 => cents.parse().ok()?,
        // Tenths of a penny occur; they are cut off.
        _ => cents
            .get(..2)
            .filter(|_| cents.bytes().all(|b| b.is_ascii_digit()))?
            .parse()
            .ok()?,
    };
    if !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    whole
        .parse::<i64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(i64::from(cents))
}

/// `2010-12-01 08:26:00`, UTC.
fn timestamp(text: &str) -> Option<Timestamp> {
    let time: jiff::civil::DateTime = text.parse().ok()?;
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(Timestamp::from_millis(zoned.timestamp().as_millisecond()))
}

impl Report {
    fn bad_line(&mut self, line: u64, wrong: String) {
        self.bad += 1;
        if self.bad_lines.len() < MOST_LISTED {
            self.bad_lines.push((line, wrong));
        }
    }
}

impl Retail {
    /// Notes a return on the customer's latest orders of the product.
    fn give_back(&mut self, invoices: &[usize], sale: &Sale) {
        let mut left = u32::try_from(sale.quantity.unsigned_abs()).unwrap_or(u32::MAX);
        for index in invoices.iter().rev() {
            for line in self.invoices[*index]
                .lines
                .iter_mut()
                .filter(|line| line.sku == sale.sku)
            {
                let back = left.min(line.qty - line.returned);
                line.returned += back;
                left -= back;
            }
        }
        match left {
            0 => self.report.returns += 1,
            _ => self.report.unmatched_returns += 1,
        }
    }

    /// How many products and orders it holds.
    pub fn size(&self) -> (usize, usize) {
        (self.products.len(), self.invoices.len())
    }

    fn products(
        &self,
        category: contracts::CategoryId,
        currency: Currency,
    ) -> Vec<ImportedProduct> {
        let product = |(sku, goods): (&String, &Goods)| {
            // The price it was sold at most often; the lower of two.
            let usual = goods
                .prices
                .iter()
                .max_by_key(|(price, count)| (**count, -**price));
            let net = Money::new(usual.map_or(0, |(price, _)| *price), currency);
            let draft = ProductDraft {
                sku: sku.clone(),
                name: goods.name.clone(),
                description: String::new(),
                supplier: None,
                categories: vec![category],
                net,
                tax: TaxRate(2_000),
                fulfilment: Fulfilment::Physical,
                weight_g: 200,
                attributes: BTreeMap::new(),
                status: ProductStatus::Active,
            };
            ImportedProduct {
                draft,
                on_hand: ON_HAND,
            }
        };
        self.products.iter().map(product).collect()
    }

    fn order_batches(&self, currency: Currency) -> Vec<ImportOrders> {
        let mut batches = Vec::new();
        let mut orders: Vec<ImportedOrder> = Vec::new();
        let mut lines = 0;
        for invoice in &self.invoices {
            let is_full =
                orders.len() >= ORDERS_PER_BATCH || lines + invoice.lines.len() > LINES_PER_BATCH;
            if is_full && !orders.is_empty() {
                batches.push(ImportOrders {
                    orders: std::mem::take(&mut orders),
                });
                lines = 0;
            }
            lines += invoice.lines.len();
            orders.push(self.order(invoice, currency));
        }
        if !orders.is_empty() {
            batches.push(ImportOrders { orders });
        }
        batches
    }

    fn order(&self, invoice: &Invoice, currency: Currency) -> ImportedOrder {
        let line = |line: &Line| ImportedLine {
            product_id: ProductId::derive(&line.sku),
            sku: line.sku.clone(),
            name: self
                .products
                .get(&line.sku)
                .map_or_else(String::new, |goods| goods.name.clone()),
            qty: line.qty,
            unit_net: line.price,
            returned: line.returned,
        };
        ImportedOrder {
            number: format!("retail-{}", invoice.number),
            user_id: UserId::derive(&format!("retail-{}", invoice.customer)),
            placed_at: invoice.at,
            currency,
            lines: invoice.lines.iter().map(line).collect(),
        }
    }
}

/// Sends what a file holds to the product and order services, with progress on standard error.
/// `state` remembers how far
/// it came in the shop named `target`: run it again and it goes on from there.
///
/// # Errors
/// When a service refuses, or cannot be reached after several tries.
pub async fn send(
    retail: &Retail,
    product: &Staff,
    order: &Staff,
    target: &str,
    state: &Path,
) -> anyhow::Result<()> {
    let currency = Currency::default();
    // Another file, or another shop, starts from the beginning.
    let what = format!("{target} {:?} {:?}", retail.size(), retail.report);
    let mark = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, what.as_bytes());
    let mut done = Done::load(state)?;
    let name = "Gift shop".to_owned();
    let category = product
        .send(CreateCategory { name, parent: None })
        .await
        .context("add category")?;
    let products = retail.products(category.id, currency);
    let batches: Vec<_> = products
        .chunks(PRODUCTS_PER_BATCH)
        .map(|chunk| ImportProducts {
            products: chunk.to_vec(),
        })
        .collect();
    done.run(&format!("products {mark}"), batches, async |batch| {
        product.send(batch).await
    })
    .await?;
    let batches = retail.order_batches(currency);
    done.run(&format!("orders {mark}"), batches, async |batch| {
        order.send(batch).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n";

    fn retail(lines: &[&str]) -> Retail {
        parse(format!("{HEADER}{}\n", lines.join("\n")).as_bytes()).unwrap()
    }

    #[test]
    fn sales_returns_fees_and_nonsense_are_told_apart() {
        let retail = retail(&[
            "536365,85123a,HEART HOLDER,6,2010-12-01 08:26:00,2.55,17850,United Kingdom",
            "536365,71053,LANTERN,2,2010-12-01 08:26:00,3.4,17850,United Kingdom",
            "C536379,85123A,HEART HOLDER,-2,2010-12-02 09:00:00,2.55,17850,United Kingdom",
            "C536380,85123A,HEART HOLDER,-2,2010-12-02 09:00:00,2.55,99999,United Kingdom",
            "536366,POST,POSTAGE,1,2010-12-01 08:26:00,18.00,17850,France",
            "536367,71053,LANTERN,1,2010-12-01 08:26:00,0.00,17850,France",
            "536368,71053,LANTERN,x,2010-12-01 08:26:00,1.00,17850,France",
            "536369,71053,LANTERN,1,yesterday,1.00,17850,France",
            "536370,71053,LANTERN,1,2010-12-03 08:26:00,3.4,,France",
        ]);
        let Report {
            lines,
            sales,
            returns,
            unmatched_returns,
            not_goods,
            bad,
            bad_lines,
        } = &retail.report;
        assert_eq!((*lines, *sales, *not_goods, *bad), (9, 3, 1, 3));
        assert_eq!((*returns, *unmatched_returns), (1, 1));
        assert_eq!(
            bad_lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [7, 8, 9]
        );
        assert_eq!(retail.size(), (2, 2));
        assert_eq!(retail.invoices[0].lines[0].returned, 2);
        let batch = &retail.order_batches(Currency::EUR)[0].orders;
        assert_eq!(batch[0].lines[0].product_id, ProductId::derive("85123A"));
        assert_ne!(batch[0].user_id, batch[1].user_id);
    }

    #[test]
    fn prices_are_read_without_floats() {
        for (text, price) in [
            ("2.55", Some(255)),
            ("0.29", Some(29)),
            ("3.4", Some(340)),
            ("7", Some(700)),
            ("-1.00", None),
            ("1.x9", None),
            ("", None),
            ("0.001", Some(0)),
        ] {
            assert_eq!(
                minor_units(text).filter(|_| !text.is_empty()),
                price,
                "{text}"
            );
        }
    }

    #[test]
    fn batches_are_bounded_by_orders_and_by_lines() {
        let mut retail = Retail::default();
        for number in 0..250 {
            let lines = (0..20).map(|sku| Line {
                sku: format!("{sku:05}"),
                qty: 1,
                price: 1,
                returned: 0,
            });
            retail.invoices.push(Invoice {
                number: number.to_string(),
                customer: "c".to_owned(),
                at: Timestamp::from_millis(0),
                lines: lines.collect(),
            });
        }
        let batches = retail.order_batches(Currency::EUR);
        assert_eq!(
            batches
                .iter()
                .map(|batch| batch.orders.len())
                .sum::<usize>(),
            250
        );
        assert!(batches.iter().all(|batch| batch.orders.len() <= 75));
    }
}
