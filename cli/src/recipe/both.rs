//! One table of a recipe whose keys belong to two structs: the options of a pass, and what the trainer needs besides.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// See the [module](self). A key goes to the first struct if that has it, else to the second, which refuses those that it
/// does not know.
#[derive(Clone, Debug, Default)]
pub struct Both<A, B> {
    /// The first.
    pub first: A,
    /// The second.
    pub second: B,
}

impl<'de, A: DeserializeOwned + JsonSchema, B: DeserializeOwned> Deserialize<'de> for Both<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Map::<String, Value>::deserialize(deserializer)?;
        let known = schemars::schema_for!(A);
        let known = known.get("properties").and_then(Value::as_object);
        let is_first = |key: &String| known.is_some_and(|known| known.contains_key(key));
        let (first, second): (Map<_, _>, Map<_, _>) = all.into_iter().partition(|(key, _)| is_first(key));
        Ok(Both {
            first: serde_json::from_value(first.into()).map_err(D::Error::custom)?,
            second: serde_json::from_value(second.into()).map_err(D::Error::custom)?,
        })
    }
}

impl<A: JsonSchema, B: JsonSchema> JsonSchema for Both<A, B> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}And{}", A::schema_name(), B::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (mut first, mut second) = (A::json_schema(generator), B::json_schema(generator));
        let more = second.get_mut("properties").and_then(Value::as_object_mut).map(std::mem::take);
        if let (Some(properties), Some(more)) = (first.get_mut("properties").and_then(Value::as_object_mut), more) {
            properties.extend(more);
        }
        first
    }
}
