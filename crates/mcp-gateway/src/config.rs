//! The configuration that a client gives: an object of server names and their options, in its order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::limits::MAX_SERVERS;

/// One server as configured.
pub(crate) struct Configured {
    pub(crate) name: String,
    pub(crate) options: Map<String, Value>,
}

/// Reads a configuration.
///
/// # Errors
/// It is not an object of objects, names a server twice, or too many.
pub(crate) fn parse(text: &str) -> Result<Vec<Configured>, Error> {
    let Ordered(members) = serde_json::from_str(text).map_err(|error| Error::Config(error.to_string()))?;
    if members.len() > MAX_SERVERS {
        return Err(Error::TooManyServers { given: members.len(), most: MAX_SERVERS });
    }
    let mut servers: Vec<Configured> = Vec::new();
    for (name, value) in members {
        if servers.iter().any(|other| other.name == name) {
            return Err(Error::Config(format!("{name} is there twice")));
        }
        let Value::Object(options) = value else {
            return Err(Error::Config(format!("the value of {name} is not an object")));
        };
        servers.push(Configured { name, options });
    }
    Ok(servers)
}

/// The members of a JSON object in their order, which decides whose tool keeps a name that two servers have.
struct Ordered(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Ordered;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Ordered(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_and_refuses_what_is_no_configuration() {
        let servers = parse(r#"{"time":{},"git":{"paths":["/a"]},"exa":{}}"#).expect("valid");
        assert_eq!(servers.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["time", "git", "exa"]);
        for bad in ["", "[]", "null", r#"{"a":1}"#, r#"{"a":{},"a":{}}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..=MAX_SERVERS).map(|number| format!(r#""s{number}":{{}}"#)).collect();
        assert!(matches!(parse(&format!("{{{}}}", many.join(","))), Err(Error::TooManyServers { .. })));
    }
}
