//! docs/operators.md says what the registry says.

use kernelsmith_frontend::onnx::ops;
use std::collections::BTreeSet;

#[test]
fn the_table_of_operators_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operators.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (mut domain, mut rows) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(d) = line.strip_prefix("## ") {
            domain = d.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", name, since, ..] = cells.as_slice()
            && let Ok(since) = since.parse::<i64>()
        {
            rows.insert((domain.clone(), (*name).to_owned(), since));
        }
    }
    let known: BTreeSet<_> = ops::all()
        .into_iter()
        .map(|o| {
            let domain = if o.domain.is_empty() { "ai.onnx" } else { o.domain };
            (domain.to_owned(), o.name.to_owned(), o.since)
        })
        .collect();
    let missing: Vec<_> = known.difference(&rows).collect();
    let gone: Vec<_> = rows.difference(&known).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "run scripts/operators.py: missing {missing:?}, gone {gone:?}"
    );
}
