//! Parses request bodies by hand, because clients expect validation errors in FastAPI's format.
//! One SDK sends any value as code and relies on the server to reject everything but strings.
//! Unknown fields are ignored; null means absent.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::envd::Env;

/// Maximum time limit of a run, seconds: longer than any sandbox exists.
const MAX_RUN: f64 = 365.0 * 24.0 * 3600.0;

#[derive(Debug, PartialEq)]
pub(super) struct Execute {
    pub(super) code: String,
    pub(super) context_id: Option<String>,
    pub(super) language: Option<String>,
    pub(super) env_vars: Env,
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Create {
    pub(super) language: Option<String>,
    pub(super) cwd: Option<String>,
}

pub(super) fn execute(body: &[u8]) -> Result<Execute, Value> {
    let body = object(body)?;
    let Some(code) = body.get("code") else { return Err(missing(&["body", "code"], body.into())) };
    Ok(Execute {
        code: text("code", code)?,
        context_id: optional(&body, "context_id")?,
        language: optional(&body, "language")?,
        env_vars: variables(&body)?,
        timeout: timeout(&body)?,
    })
}

pub(super) fn create(body: &[u8]) -> Result<Create, Value> {
    let body = object(body)?;
    Ok(Create { language: optional(&body, "language")?, cwd: optional(&body, "cwd")? })
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Value> {
    if body.is_empty() {
        return Err(missing(&["body"], Value::Null));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null) => Err(missing(&["body"], Value::Null)),
        Ok(other) => Err(wrong(
            "model_attributes_type",
            &["body"],
            "Input should be a valid dictionary or object to extract fields from",
            other,
        )),
        Err(error) => Err(json!({
            "type": "json_invalid", "loc": ["body", error.column()], "msg": "JSON decode error", "input": {},
            "ctx": {"error": error.to_string()},
        })),
    }
}

fn text(name: &str, value: &Value) -> Result<String, Value> {
    let wrong = || wrong("string_type", &["body", name], "Input should be a valid string", value.clone());
    value.as_str().map(str::to_owned).ok_or_else(wrong)
}

fn optional(body: &Map<String, Value>, name: &str) -> Result<Option<String>, Value> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => text(name, value).map(Some),
    }
}

fn variables(body: &Map<String, Value>) -> Result<Env, Value> {
    let object = match body.get("env_vars") {
        None | Some(Value::Null) => return Ok(Env::new()),
        Some(Value::Object(object)) => object,
        Some(other) => {
            let message = "Input should be a valid dictionary";
            return Err(wrong("dict_type", &["body", "env_vars"], message, other.clone()));
        }
    };
    let mut env = Env::new();
    for (name, value) in object {
        let at: &[&str] = &["body", "env_vars", name];
        let Some(text) = value.as_str() else {
            return Err(wrong("string_type", at, "Input should be a valid string", value.clone()));
        };
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(wrong("value_error", at, "No environment can hold this", value.clone()));
        }
        env.insert(name.clone(), text.to_owned());
    }
    Ok(env)
}

fn timeout(body: &Map<String, Value>) -> Result<Option<Duration>, Value> {
    let value = match body.get("timeout") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match value.as_f64() {
        Some(0.0) => Ok(None),
        Some(seconds) if seconds > 0.0 => Ok(Some(Duration::from_secs_f64(seconds.min(MAX_RUN)))),
        _ => {
            let message = "Input should be a number of seconds, 0 for no limit";
            Err(wrong("float_type", &["body", "timeout"], message, value.clone()))
        }
    }
}

fn missing(at: &[&str], input: Value) -> Value {
    wrong("missing", at, "Field required", input)
}

fn wrong(kind: &str, at: &[&str], message: &str, input: Value) -> Value {
    let mut detail = json!({"type": kind, "loc": at, "msg": message});
    detail["input"] = input;
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> (String, Value) {
        let detail = execute(body.as_bytes()).unwrap_err();
        (detail["type"].as_str().unwrap().to_owned(), detail["loc"].clone())
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(refusal(""), ("missing".to_owned(), json!(["body"])));
        assert_eq!(refusal("{}"), ("missing".to_owned(), json!(["body", "code"])));
        assert_eq!(refusal(r#"{"code": {}}"#), ("string_type".to_owned(), json!(["body", "code"])));
        assert_eq!(refusal(r#"{"code": null}"#), ("string_type".to_owned(), json!(["body", "code"])));
        assert_eq!(refusal("[]"), ("model_attributes_type".to_owned(), json!(["body"])));
        assert_eq!(refusal("{").0, "json_invalid");
        assert_eq!(
            refusal(r#"{"code": "", "env_vars": []}"#),
            ("dict_type".to_owned(), json!(["body", "env_vars"]))
        );
        let at = json!(["body", "env_vars", "A"]);
        assert_eq!(refusal(r#"{"code": "", "env_vars": {"A": 1}}"#), ("string_type".to_owned(), at.clone()));
        assert_eq!(refusal(r#"{"code": "", "env_vars": {"A": "\u0000"}}"#), ("value_error".to_owned(), at));
        assert_eq!(refusal(r#"{"code": "", "timeout": -1}"#).0, "float_type");
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let body = r#"{"code": "1", "context_id": null, "language": null, "env_vars": null, "else": 1}"#;
        let read = execute(body.as_bytes()).unwrap();
        let nothing = Execute {
            code: "1".to_owned(),
            context_id: None,
            language: None,
            env_vars: Env::new(),
            timeout: None,
        };
        assert_eq!(read, nothing);
        assert_eq!(create(b"{}").unwrap(), Create { language: None, cwd: None });
    }
}
