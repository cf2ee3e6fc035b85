//! The search language: what Carbon Black, Elastic and Kibana users write, made into a checked tree, and what it holds of.
//! Pure: text and documents in, decisions out; `now` is an argument.
//!
//! One event's way: [`query`] bounds the text before the grammar's crate, which recurses, may see it, and makes a [`tree`] of
//! it whose fields ([`fields`]) and values are checked; [`document`] holds the tree against a process or a flow record;
//! [`hints`] say what may be passed over unread; [`advice`] warns of questions that miss what they seem to ask for.
//!
//! A search proves nothing about what it does not list: only `alibi who` judges hosts. So a hint may only ever save reading,
//! and never drops what the tree holds of; and a time that is not exactly known counts as whatever it may have been.
//!
//! Terms that stand side by side are joined by AND, as in Carbon Black. A field that has several values, as the addresses of
//! a process's connections, fits if any of them does; two terms about connections need not fit one and the same.

pub mod advice;
pub mod cursor;
pub mod document;
pub mod fields;
pub mod hints;
pub mod pattern;
pub mod query;
pub mod time;
pub mod tree;
