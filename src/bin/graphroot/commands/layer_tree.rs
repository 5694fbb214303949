//! Layers printed as trees (`layers --tree`).

use std::collections::{HashMap, HashSet};

use crate::outcome::CommandError;
use crate::output::Output;

/// A layer and its parent.
#[derive(Clone, Debug)]
pub(crate) struct LayerNode {
    pub(crate) parent: String,
    pub(crate) id: String,
    /// Lines printed below the ID.
    pub(crate) notes: Vec<String>,
}

/// Prints all trees, the one whose root has the fewest children first. A root is a parent that is not a node itself.
pub(crate) fn print(out: &mut Output, mut nodes: Vec<LayerNode>) -> Result<(), CommandError> {
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

/// The next root; none if the remaining nodes are their own ancestors.
fn root(nodes: &[LayerNode]) -> Option<String> {
    let ids: HashSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    let mut children: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        *children.entry(&node.parent).or_default() += 1;
    }
    let roots = nodes
        .iter()
        .map(|node| node.parent.as_str())
        .filter(|parent| !ids.contains(parent));
    // `min_by_key` takes the first of several roots with equally many children.
    roots
        .min_by_key(|parent| children.get(parent).copied())
        .map(str::to_owned)
}

/// The nodes of one level that are not printed yet.
struct TreeLevel {
    children: std::vec::IntoIter<LayerNode>,
    /// The prefix of each line of this level.
    indent: String,
}

/// Prints everything below `root` and returns the other nodes. It keeps its own stack, because records may describe a
/// chain of layers of any length.
fn print_below(out: &mut Output, root: &str, nodes: Vec<LayerNode>) -> Result<Vec<LayerNode>, CommandError> {
    let (mut left, children) = split(nodes, root);
    let mut levels = vec![TreeLevel {
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
        levels.push(TreeLevel {
            children: children.into_iter(),
            indent: indent + below,
        });
    }
    Ok(left)
}

/// The nodes that are not children of `parent`, and those that are.
fn split(nodes: Vec<LayerNode>, parent: &str) -> (Vec<LayerNode>, Vec<LayerNode>) {
    nodes.into_iter().partition(|node| node.parent != parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_with_the_fewest_children_comes_first_and_a_cycle_has_no_root() {
        let node = |parent: &str, id: &str| LayerNode {
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
