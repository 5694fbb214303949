//! Layers as a tree of box-drawing characters.

use std::collections::{HashMap, HashSet};

use crate::call::{Failure, Out};

/// A layer below its parent.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) parent: String,
    pub(crate) id: String,
    /// Lines below it.
    pub(crate) notes: Vec<String>,
}

/// Prints the trees, the one whose root has the fewest children first. A root is a parent that is no node itself.
pub(crate) fn print(out: &mut Out, mut nodes: Vec<Node>) -> Result<(), Failure> {
    while let Some(root) = root(&nodes) {
        out.line(&root)?;
        let before = nodes.len();
        nodes = print_below(out, &root, nodes)?;
        if nodes.len() == before {
            break;
        }
    }
    Ok(())
}

/// The next root; none if there are only circles left.
fn root(nodes: &[Node]) -> Option<String> {
    let ids: HashSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    let mut children: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        *children.entry(&node.parent).or_default() += 1;
    }
    let roots = nodes
        .iter()
        .map(|node| node.parent.as_str())
        .filter(|parent| !ids.contains(parent));
    // The first one of those that have equally many.
    roots
        .min_by_key(|parent| children.get(parent).copied())
        .map(str::to_owned)
}

/// What is left to print at one level.
struct Level {
    children: std::vec::IntoIter<Node>,
    /// What the lines of this level begin with.
    indent: String,
}

/// Prints everything below `root` and returns the other nodes. Records of a store are no match for the stack: however
/// long a chain of layers is, this goes on.
fn print_below(out: &mut Out, root: &str, nodes: Vec<Node>) -> Result<Vec<Node>, Failure> {
    let (mut left, children) = split(nodes, root);
    let mut levels = vec![Level {
        children: children.into_iter(),
        indent: String::new(),
    }];
    while let Some(level) = levels.last_mut() {
        let Some(node) = level.children.next() else {
            levels.pop();
            continue;
        };
        let more = level.children.len() > 0;
        let indent = level.indent.clone();
        out.line(format!("{indent}{}─{}", if more { '├' } else { '└' }, node.id))?;
        let below = if more { "│ " } else { "  " };
        for note in &node.notes {
            out.line(format!("{indent}{below}{note}"))?;
        }
        let (others, children) = split(left, &node.id);
        left = others;
        levels.push(Level {
            children: children.into_iter(),
            indent: indent + below,
        });
    }
    Ok(left)
}

/// The nodes whose parent is not `parent`, and those whose parent it is.
fn split(nodes: Vec<Node>, parent: &str) -> (Vec<Node>, Vec<Node>) {
    nodes.into_iter().partition(|node| node.parent != parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_chosen_by_its_children_and_circles_have_none() {
        let node = |parent: &str, id: &str| Node {
            parent: parent.into(),
            id: id.into(),
            notes: Vec::new(),
        };
        let nodes = [
            node("(base)", "a"),
            node("(base)", "b"),
            node("gone", "c"),
            node("a", "d"),
        ];
        assert_eq!(root(&nodes).as_deref(), Some("gone"));
        assert_eq!(root(&nodes[..2]).as_deref(), Some("(base)"));
        assert_eq!(root(&[node("x", "y"), node("y", "x")]), None);
        assert_eq!(root(&[]), None);
    }
}
