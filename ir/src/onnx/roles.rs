//! How the roles of parameters stand in a file: one entry of the model's metadata, `sartor.roles`, with one line
//! `role name` for every parameter whose role does not follow from the file by the rule below. A model with nothing but
//! frozen weights has no such entry.
//!
//! The rule, for an initializer of the main graph: if a program is bound to it, it is `Trainable` when the inference
//! graph reads it and it is floating point, else `State`; otherwise, floating point of rank 1 or more is `Frozen`; what
//! is left is no parameter but a constant. In the lines, `\` and newlines of names are written `\\` and `\n`.

use crate::dtype::DType;
use crate::error::Result;
use crate::model::Role;
use crate::{bail, ensure};
use std::collections::HashMap;

/// The key in `metadata_props`.
pub const ROLES_KEY: &str = "sartor.roles";

/// The role that an initializer has when nothing is said; `None` for a constant.
pub(super) fn default_role(dtype: DType, rank: usize, bound: bool, read: bool) -> Option<Role> {
    match bound {
        true if read && dtype.is_float() => Some(Role::Trainable),
        true => Some(Role::State),
        false => (dtype.is_float() && rank > 0).then_some(Role::Frozen),
    }
}

/// The lines of the entry.
pub(super) fn write_roles<'a>(roles: impl Iterator<Item = (&'a str, Role)>) -> String {
    let escape = |name: &str| name.replace('\\', "\\\\").replace('\n', "\\n");
    let lines: Vec<String> = roles.map(|(name, role)| format!("{} {}", role.name(), escape(name))).collect();
    lines.join("\n")
}

/// What the entry says: name → role.
pub(super) fn read_roles(text: &str) -> Result<HashMap<String, Role>> {
    let mut roles = HashMap::new();
    for line in text.lines() {
        let parts = line.split_once(' ');
        let Some((role, name)) = parts.and_then(|(role, name)| Some((Role::from_name(role)?, unescape(name)))) else {
            bail!("the metadata entry {ROLES_KEY} has the line {line:?}, expected a role and a name");
        };
        ensure!(roles.insert(name, role).is_none(), "the metadata entry {ROLES_KEY} says twice: {line:?}");
    }
    Ok(roles)
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_survive() {
        let roles = [("a b", Role::Trainable), ("c\\\n\\n", Role::State)];
        let text = write_roles(roles.into_iter());
        assert_eq!(text, "trainable a b\nstate c\\\\\\n\\\\n");
        let back = read_roles(&text).unwrap();
        assert_eq!(back, roles.map(|(n, r)| (n.to_string(), r)).into());
        assert!(read_roles("frozen").is_err() && read_roles("soft x").is_err());
    }
}
