//! Holds exported events against the published schemas, trimmed as `fixtures/standards/README.md` tells: every field known,
//! of the right type, with a value that the schema has; what is required, there.
//!
//! What is found is told by the name of the field. A field that the trimmed schema does not have is a finding, too: what is
//! used is added to what is kept, and so it is checked.

use std::{collections::BTreeMap, net::IpAddr, sync::OnceLock};

use alibi_proto::time::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Below this, a document of ECS has what is the exporter's own, as ECS leaves it to custom fields.
const OWN: &str = "alibi.";

#[derive(Deserialize)]
struct Ecs {
    version: String,
    fields: BTreeMap<String, EcsField>,
}

#[derive(Deserialize)]
struct EcsField {
    r#type: String,
    #[serde(default)]
    array: bool,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    allowed: Vec<String>,
    #[serde(default)]
    expected: Vec<String>,
    /// By a value of this field, those that `event.type` has beside it.
    #[serde(default)]
    expected_types: BTreeMap<String, Vec<String>>,
}

/// What is wrong with a document of ECS; nothing where it holds.
pub fn against_ecs(document: &Value) -> Vec<String> {
    static ECS: OnceLock<Ecs> = OnceLock::new();
    let ecs = ECS.get_or_init(|| read(include_str!("../fixtures/standards/ecs.json")));
    let mut fields = BTreeMap::new();
    flatten(document, "", &mut fields);
    let mut wrong = Vec::new();
    for (name, value) in &fields {
        if name.starts_with(OWN) {
            continue;
        }
        match ecs.fields.get(name) {
            None => wrong.push(format!("{name} is no field of the schema")),
            Some(field) => wrong.extend(field.against(name, value)),
        }
    }
    let required = ecs.fields.iter().filter(|(_, field)| field.required);
    wrong.extend(
        required
            .filter(|(name, _)| !fields.contains_key(*name))
            .map(|(name, _)| format!("{name} is required, and missing")),
    );
    if fields.get("ecs.version").is_some_and(|version| **version != ecs.version.as_str()) {
        wrong.push(format!("ecs.version is not {}", ecs.version));
    }
    wrong.extend(types_beside_categories(ecs, &fields));
    wrong
}

fn types_beside_categories(ecs: &Ecs, fields: &BTreeMap<String, &Value>) -> Vec<String> {
    let words = |name: &str| fields.get(name).and_then(|value| value.as_array()).cloned().unwrap_or_default();
    let expected = &ecs.fields["event.category"].expected_types;
    let mut wrong = Vec::new();
    for category in words("event.category") {
        let Some(types) = category.as_str().and_then(|category| expected.get(category)) else { continue };
        for given in words("event.type").iter().filter_map(Value::as_str) {
            if !types.iter().any(|known| known == given) {
                wrong.push(format!("event.type {given} does not go with event.category {category}"));
            }
        }
    }
    wrong
}

/// Every value by its dotted name. A list of values is one; a list of objects is so many, under one name.
fn flatten<'a>(value: &'a Value, name: &str, fields: &mut BTreeMap<String, &'a Value>) {
    let Value::Object(inner) = value else {
        fields.insert(name.to_owned(), value);
        return;
    };
    for (key, value) in inner {
        let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        flatten(value, &name, fields);
    }
}

impl EcsField {
    fn against(&self, name: &str, value: &Value) -> Vec<String> {
        let values = match (self.array, value) {
            (true, Value::Array(values)) => values.iter().collect(),
            (true, _) => return vec![format!("{name} is not an array")],
            (false, value) => vec![value],
        };
        let mut wrong = Vec::new();
        for value in values {
            if !self.has_type(value) {
                wrong.push(format!("{name} is not of type {}: {value}", self.r#type));
            }
            let known = |words: &[String]| words.is_empty() || words.iter().any(|word| *word == *value);
            if !known(&self.allowed) || !known(&self.expected) {
                wrong.push(format!("{name} has no such value: {value}"));
            }
        }
        wrong
    }

    fn has_type(&self, value: &Value) -> bool {
        match self.r#type.as_str() {
            "keyword" | "wildcard" | "match_only_text" | "constant_keyword" => value.is_string(),
            "long" => value.as_i64().is_some(),
            "boolean" => value.is_boolean(),
            "date" => is_instant(value),
            "ip" => is_address(value),
            // No export has fields of other types so far.
            _ => false,
        }
    }
}

fn is_address(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok())
}

fn is_instant(value: &Value) -> bool {
    serde_json::from_value::<Timestamp>(value.clone()).is_ok()
}

#[derive(Deserialize)]
struct Ocsf {
    version: String,
    profiles: Vec<String>,
    types: BTreeMap<String, OcsfType>,
    classes: BTreeMap<String, OcsfObject>,
    objects: BTreeMap<String, OcsfObject>,
}

#[derive(Deserialize)]
struct OcsfType {
    /// What it is a kind of.
    r#type: Option<String>,
    range: Option<[i64; 2]>,
    max_len: Option<usize>,
}

#[derive(Deserialize)]
struct OcsfObject {
    attributes: BTreeMap<String, OcsfAttribute>,
    #[serde(default)]
    constraints: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct OcsfAttribute {
    r#type: String,
    #[serde(default)]
    array: bool,
    #[serde(default)]
    required: bool,
    /// Captions by number; none where any value will do.
    #[serde(default)]
    r#enum: BTreeMap<String, String>,
    /// The attribute that has the caption in words.
    sibling: Option<String>,
}

/// The number by which a value is not the schema's: its sibling says in words of one's own what it is.
const OTHER: &str = "99";

/// What is wrong with a document of OCSF; nothing where it holds.
pub fn against_ocsf(document: &Value) -> Vec<String> {
    static OCSF: OnceLock<Ocsf> = OnceLock::new();
    let ocsf = OCSF.get_or_init(|| read(include_str!("../fixtures/standards/ocsf.json")));
    let Some(fields) = document.as_object() else { return vec!["it is no object".to_owned()] };
    let class = fields.get("class_uid").map(Value::to_string).unwrap_or_default();
    let Some(class) = ocsf.classes.get(&class) else {
        return vec![format!("class_uid {class} is no class that is known")];
    };
    let mut wrong = ocsf.object(class, "", fields);
    let metadata = &document["metadata"];
    if metadata["version"] != ocsf.version.as_str() {
        wrong.push(format!("metadata.version is not {}", ocsf.version));
    }
    for profile in metadata["profiles"].as_array().into_iter().flatten() {
        if !ocsf.profiles.iter().any(|known| *known == *profile) {
            wrong.push(format!("metadata.profiles has no {profile}"));
        }
    }
    let number = |name: &str| document[name].as_i64().unwrap_or(-1);
    if number("type_uid") != number("class_uid") * 100 + number("activity_id") {
        wrong.push("type_uid is not that of the class and the activity".to_owned());
    }
    wrong
}

impl Ocsf {
    fn object(&self, object: &OcsfObject, at: &str, fields: &Map<String, Value>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, value) in fields {
            let path = format!("{at}{name}");
            match object.attributes.get(name) {
                None => wrong.push(format!("{path} is no attribute of the schema")),
                Some(attribute) => {
                    wrong.extend(self.attribute(attribute, &path, value));
                    wrong.extend(attribute.against_sibling(&path, value, fields));
                }
            }
        }
        let missing =
            |(name, attribute): &(&String, &OcsfAttribute)| attribute.required && !fields.contains_key(*name);
        let missing = object.attributes.iter().filter(missing);
        wrong.extend(missing.map(|(name, _)| format!("{at}{name} is required, and missing")));
        if let Some(names) = object.constraints.get("at_least_one")
            && !names.iter().any(|name| fields.contains_key(name))
        {
            wrong.push(format!("{at} has none of {}", names.join(", ")));
        }
        wrong
    }

    fn attribute(&self, attribute: &OcsfAttribute, path: &str, value: &Value) -> Vec<String> {
        match (attribute.array, value) {
            (true, Value::Array(values)) => {
                values.iter().flat_map(|value| self.value(attribute, path, value)).collect()
            }
            (true, _) => vec![format!("{path} is not an array")],
            (false, value) => self.value(attribute, path, value),
        }
    }

    fn value(&self, attribute: &OcsfAttribute, path: &str, value: &Value) -> Vec<String> {
        let name = attribute.r#type.as_str();
        if !attribute.r#enum.is_empty() && !attribute.r#enum.contains_key(&value.to_string()) {
            return vec![format!("{path} has no such value: {value}")];
        }
        if name == "object" {
            // `unmapped`: anything.
            return if value.is_object() { Vec::new() } else { vec![format!("{path} is no object")] };
        }
        if self.types.contains_key(name) {
            let holds = self.has_type(name, value);
            return if holds { Vec::new() } else { vec![format!("{path} is not of type {name}: {value}")] };
        }
        match (self.objects.get(name), value) {
            (Some(object), Value::Object(fields)) => self.object(object, &format!("{path}."), fields),
            (Some(_), _) => vec![format!("{path} is no object")],
            (None, _) => vec![format!("{path} is a {name}, of which the trimmed schema has nothing")],
        }
    }

    /// Of the type, and of what that is a kind of.
    fn has_type(&self, name: &str, value: &Value) -> bool {
        let defined = &self.types[name];
        let in_range = defined.range.is_none_or(|[least, most]| {
            value.as_i64().is_some_and(|number| (least..=most).contains(&number))
        });
        let is_short =
            defined.max_len.is_none_or(|most| value.as_str().is_some_and(|text| text.len() <= most));
        let is_kind = match name {
            "ip_t" => is_address(value),
            "datetime_t" => is_instant(value),
            "boolean_t" => value.is_boolean(),
            "integer_t" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            "long_t" => value.as_i64().is_some(),
            "string_t" => value.is_string(),
            // What has a form of its own is not passed unseen, but is no type of an export so far.
            "bytestring_t" | "email_t" | "mac_t" | "uuid_t" | "float_t" | "json_t" => false,
            _ => true,
        };
        in_range
            && is_short
            && is_kind
            && defined.r#type.as_deref().is_none_or(|outer| self.has_type(outer, value))
    }
}

impl OcsfAttribute {
    /// Where the number is the schema's, so are the words.
    fn against_sibling(&self, path: &str, value: &Value, beside: &Map<String, Value>) -> Option<String> {
        let number = value.to_string();
        let caption = self.r#enum.get(&number).filter(|_| number != OTHER)?;
        let sibling = self.sibling.as_deref()?;
        let words = beside.get(sibling)?;
        (*words != caption.as_str()).then(|| format!("{path} is {caption}, and {sibling} says {words}"))
    }
}

fn read<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    serde_json::from_str(text).expect("a trimmed schema is what make.py has written")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ecs() -> Value {
        json!({
            "@timestamp": "2026-11-24T14:29:04.430123456Z",
            "ecs": {"version": "9.4.0"},
            "event": {"kind": "event", "category": ["network"], "type": ["connection", "end"], "duration": 12},
            "source": {"ip": "203.0.113.1", "port": 40670},
            "process": {"args": ["a", "b"], "pid": 1},
            "alibi": {"verdict": "talked"},
        })
    }

    fn ocsf() -> Value {
        json!({
            "metadata": {"version": "1.8.0", "product": {"name": "x"}, "profiles": ["host", "datetime"]},
            "category_uid": 4, "class_uid": 4001, "activity_id": 2, "activity_name": "Close", "type_uid": 400102,
            "severity_id": 1, "time": 1_764_000_000_000_u64, "time_dt": "2026-11-24T14:29:04.430Z",
            "src_endpoint": {"ip": "203.0.113.1", "port": 40670},
            "connection_info": {"direction_id": 2, "direction": "Outbound"},
            "actor": {"process": {"pid": 1, "file": {"name": "x", "type_id": 1}}},
            "unmapped": {"verdict": "talked"},
        })
    }

    /// Sets what the pointer points at, or takes it away, and has the finding told that names it.
    fn planted(against: fn(&Value) -> Vec<String>, mut document: Value, cases: &[(&str, Value, &str)]) {
        assert_eq!(against(&document), Vec::<String>::new(), "as it is, it holds");
        for (pointer, value, finding) in cases {
            let whole = document.clone();
            let (outer, name) = pointer.rsplit_once('/').unwrap();
            let fields = document.pointer_mut(outer).unwrap().as_object_mut().unwrap();
            if value.is_null() {
                assert!(fields.remove(name).is_some(), "{pointer}");
            } else {
                fields.insert(name.to_owned(), value.clone());
            }
            let found = against(&document);
            assert!(found.iter().any(|found| found.contains(finding)), "{pointer} {value}: {found:?}");
            document = whole;
        }
    }

    #[test]
    fn a_wrong_document_of_ecs_is_found() {
        let cases = [
            ("/@timestamp", Value::Null, "@timestamp is required"),
            ("/@timestamp", json!("yesterday"), "@timestamp is not of type date"),
            ("/ecs/version", json!("8.0.0"), "ecs.version is not 9.4.0"),
            ("/event/kind", json!("evnt"), "event.kind has no such value"),
            ("/event/category", json!("network"), "event.category is not an array"),
            ("/event/category", json!(["net"]), "event.category has no such value"),
            ("/event/type", json!(["change"]), "event.type change does not go with"),
            ("/event/duration", json!("12"), "event.duration is not of type long"),
            ("/source/ip", json!("203.0.113.1:1"), "source.ip is not of type ip"),
            ("/source/prot", json!(1), "source.prot is no field"),
            ("/process/args", json!("a b"), "process.args is not an array"),
            ("/verdict", json!("talked"), "verdict is no field"),
        ];
        planted(against_ecs, ecs(), &cases);
    }

    #[test]
    fn a_wrong_document_of_ocsf_is_found() {
        let cases = [
            ("/metadata", Value::Null, "metadata is required"),
            ("/metadata/version", json!("1.0.0"), "metadata.version is not 1.8.0"),
            ("/metadata/product", json!({"version": "1"}), "metadata.product. has none of name, uid"),
            ("/metadata/profiles", json!(["cloud"]), "metadata.profiles has no"),
            ("/class_uid", json!(4002), "class_uid 4002 is no class"),
            ("/category_uid", json!(5), "category_uid has no such value"),
            ("/activity_id", json!(42), "activity_id has no such value"),
            ("/activity_id", json!(1), "type_uid is not that of"),
            ("/activity_name", json!("Open"), "activity_id is Close"),
            ("/time", json!("now"), "time is not of type timestamp_t"),
            ("/time_dt", json!("now"), "time_dt is not of type datetime_t"),
            ("/src_endpoint", Value::Null, "has none of dst_endpoint, src_endpoint"),
            ("/src_endpoint/port", json!(65536), "src_endpoint.port is not of type port_t"),
            ("/src_endpoint/ip", json!("x"), "src_endpoint.ip is not of type ip_t"),
            ("/connection_info/direction_id", Value::Null, "connection_info.direction_id is required"),
            ("/connection_info/direction_id", json!(9), "connection_info.direction_id has no such value"),
            ("/actor/process/file/type_id", Value::Null, "actor.process.file.type_id is required"),
            ("/actor/session", json!({}), "of which the trimmed schema has nothing"),
            ("/verdict", json!("talked"), "verdict is no attribute"),
        ];
        planted(against_ocsf, ocsf(), &cases);
    }
}
