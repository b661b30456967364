//! The page: one file that needs nothing else.

/// The report as a page; `json` is the report.
pub(super) fn page(json: &str) -> String {
    // In a script element nothing but its end tag is markup.
    let data = json.replace("</", "<\\/");
    include_str!("page.html").replace("\"the report\"", &data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_cannot_end_its_script() {
        let page = page(r#"{"commit": "</script><b>"}"#);
        assert!(page.contains(r#"{"commit": "<\/script><b>"}"#));
    }
}
