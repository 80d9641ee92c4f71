//! `docs/openapi.yaml` describes exactly the routes that the server has.

use std::collections::BTreeSet;

use serde_json::Value;

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn described(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(pattern, item)| {
        let methods = METHODS.iter().filter(|method| item.get(method.to_lowercase()).is_some());
        methods.map(move |method| format!("{method} {pattern}"))
    });
    operations.collect()
}

#[test]
fn every_route_is_described_and_every_described_route_exists() {
    let served: BTreeSet<String> =
        api::routes().iter().map(|route| format!("{} {}", route.method, route.pattern)).collect();
    let described = described(&document());
    let missing: Vec<_> = served.difference(&described).collect();
    let extra: Vec<_> = described.difference(&served).collect();
    assert!(missing.is_empty() && extra.is_empty(), "not described: {missing:?}; not served: {extra:?}");
}

#[test]
fn path_parameters_are_declared() {
    let document = document();
    let named = |parameters: &Value| -> Vec<String> {
        let parameters = parameters.as_array().into_iter().flatten();
        let resolved = parameters.map(|parameter| match parameter["$ref"].as_str() {
            Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
            None => parameter,
        });
        let in_path = resolved.filter(|parameter| parameter["in"] == "path");
        in_path.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    for (pattern, item) in document["paths"].as_object().unwrap() {
        let expected: BTreeSet<_> =
            pattern.split('{').skip(1).map(|part| part.split('}').next().unwrap()).collect();
        let declared = named(&item["parameters"]);
        assert_eq!(expected, declared.iter().map(String::as_str).collect(), "{pattern}");
    }
}

#[test]
fn operations_have_distinct_ids_and_references_resolve() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let operations = document["paths"].as_object().unwrap().values().flat_map(|item| {
        METHODS
            .iter()
            .filter_map(|method| item.get(method.to_lowercase()))
            .map(|operation| &operation["operationId"])
    });
    let ids: Vec<&str> = operations.map(|id| id.as_str().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}
