//! A query that was understood: terms, and how they are joined. Bounded by [`super::query`].

use std::fmt;

use alibi_proto::time::Timestamp;
use ipnet::IpNet;

use super::{
    fields::{About, Field},
    pattern::Pattern,
    time::Stretch,
};

/// What must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// All of these; without any, everything fits.
    And(Vec<Tree>),
    /// Any of these; without any, nothing does.
    Or(Vec<Tree>),
    /// Not this.
    Not(Box<Tree>),
    /// One term.
    Test(Test),
}

/// One term: a field, and what one of its values must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The field.
    pub field: Field,
    /// What one of its values must be.
    pub condition: Condition,
    /// The value as it was written.
    pub written: String,
}

/// What a value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There.
    Exists,
    /// A text of this pattern.
    Text(Pattern),
    /// Digits that begin so.
    Prefix(String),
    /// In the network.
    Network(IpNet),
    /// Of these addresses, of one family, both ends included: big-endian.
    Addresses {
        /// Whether they are of IPv6.
        is_v6: bool,
        /// The lowest.
        lowest: u128,
        /// The highest.
        highest: u128,
    },
    /// Of these numbers, both ends included.
    Numbers {
        /// The least.
        least: i128,
        /// The greatest.
        most: i128,
    },
    /// In this stretch, or overlapping it.
    Times(Stretch),
}

impl Tree {
    /// Everything fits.
    pub const fn all() -> Self {
        Self::And(Vec::new())
    }

    /// Whether it has a term about such a field.
    pub fn mentions(&self, is_meant: &impl Fn(&About) -> bool) -> bool {
        match self {
            Self::And(trees) | Self::Or(trees) => trees.iter().any(|tree| tree.mentions(is_meant)),
            Self::Not(tree) => tree.mentions(is_meant),
            Self::Test(test) => is_meant(test.field.about()),
        }
    }

    /// The terms that must all hold, as far as they stand side by side.
    pub fn required(&self) -> Vec<&Test> {
        match self {
            Self::And(trees) => trees.iter().flat_map(Self::required).collect(),
            Self::Or(trees) if trees.len() == 1 => trees[0].required(),
            Self::Test(test) => vec![test],
            Self::Or(_) | Self::Not(_) => Vec::new(),
        }
    }

    /// Every term replaced by what `with` makes of it.
    pub fn replaced(&self, with: &impl Fn(&Test) -> Test) -> Self {
        let each = |trees: &[Self]| trees.iter().map(|tree| tree.replaced(with)).collect();
        match self {
            Self::And(trees) => Self::And(each(trees)),
            Self::Or(trees) => Self::Or(each(trees)),
            Self::Not(tree) => Self::Not(Box::new(tree.replaced(with))),
            Self::Test(test) => Self::Test(with(test)),
        }
    }
}

/// As it can be asked again, by the fields' own names.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written(f, false)
    }
}

impl Tree {
    fn written(&self, f: &mut fmt::Formatter<'_>, is_within: bool) -> fmt::Result {
        let (trees, joint) = match self {
            Self::Test(test) => return write!(f, "{}:{}", test.field.about().name, test.written),
            Self::Not(tree) => {
                f.write_str(if is_within { "(NOT " } else { "NOT " })?;
                tree.written(f, true)?;
                return f.write_str(if is_within { ")" } else { "" });
            }
            Self::And(trees) if trees.is_empty() => return f.write_str("*"),
            Self::And(trees) => (trees, " AND "),
            Self::Or(trees) => (trees, " OR "),
        };
        let has_brackets = is_within && trees.len() > 1;
        f.write_str(if has_brackets { "(" } else { "" })?;
        for (at, tree) in trees.iter().enumerate() {
            f.write_str(if at > 0 { joint } else { "" })?;
            tree.written(f, trees.len() > 1 || is_within)?;
        }
        f.write_str(if has_brackets { ")" } else { "" })
    }
}

impl Condition {
    /// Of a text.
    pub fn fits_text(&self, text: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.fits(text),
            Self::Prefix(digits) => text.starts_with(digits.as_str()),
            _ => false,
        }
    }

    /// Of a number.
    pub const fn fits_number(&self, number: i128) -> bool {
        matches!(self, Self::Numbers { least, most } if *least <= number && number <= *most)
    }

    /// Of a stretch of time: whether it may have been in that of the condition.
    pub fn fits_times(&self, from: Timestamp, to: Timestamp) -> bool {
        matches!(self, Self::Times(stretch) if stretch.meets(Stretch { from, to }))
    }
}
