//! Circles in a directed graph.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Shortest circles, each from its least node and without its end, that together show every edge that lies on any
/// circle. None if the graph has no circle.
pub(crate) fn circles<'a>(edges: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Vec<&'a str>> {
    let mut graph = Graph::new();
    for (from, to) in edges {
        graph.entry(from).or_default().insert(to);
    }
    let mut all = BTreeSet::new();
    for (&from, targets) in &graph {
        for &to in targets {
            if let Some(back) = shortest(&graph, to, from) {
                all.insert((back.len(), turned(back)));
            }
        }
    }
    let mut shown = BTreeSet::new();
    let mut kept = Vec::new();
    for (_, circle) in all {
        let pairs: Vec<_> = circle
            .iter()
            .zip(circle.iter().cycle().skip(1))
            .map(|(from, to)| (*from, *to))
            .collect();
        if pairs.iter().any(|pair| !shown.contains(pair)) {
            shown.extend(pairs);
            kept.push(circle);
        }
    }
    kept
}

/// The groups of nodes that reach each other, largest first.
pub(crate) fn groups<'a>(circles: &[Vec<&'a str>]) -> Vec<BTreeSet<&'a str>> {
    let mut groups: Vec<BTreeSet<&str>> = Vec::new();
    for circle in circles {
        let mut joined: BTreeSet<_> = circle.iter().copied().collect();
        groups.retain(|group| {
            let apart = group.is_disjoint(&joined);
            if !apart {
                joined.extend(group);
            }
            apart
        });
        groups.push(joined);
    }
    groups.sort_by_key(|group| (usize::MAX - group.len(), group.first().copied()));
    groups
}

/// The same circle, from its least node.
fn turned(mut circle: Vec<&str>) -> Vec<&str> {
    let least = (0..circle.len()).min_by_key(|&index| circle[index]).unwrap_or(0);
    circle.rotate_left(least);
    circle
}

/// The nodes of a shortest way, both ends included.
fn shortest<'a>(graph: &Graph<'a>, from: &'a str, to: &'a str) -> Option<Vec<&'a str>> {
    let mut before = BTreeMap::from([(from, None)]);
    let mut open = VecDeque::from([from]);
    while let Some(node) = open.pop_front() {
        if node == to {
            let mut way = vec![node];
            while let Some(&Some(previous)) = before.get(way[way.len() - 1]) {
                way.push(previous);
            }
            way.reverse();
            return Some(way);
        }
        for &next in graph.get(node).into_iter().flatten() {
            before.entry(next).or_insert_with(|| {
                open.push_back(next);
                Some(node)
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_without_circles() {
        assert_eq!(
            circles([("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]),
            [[""; 0]; 0]
        );
    }

    #[test]
    fn shortest_circles_show_every_edge_on_one() {
        let edges = [
            ("c", "a"),
            ("a", "b"),
            ("b", "c"),
            ("b", "a"),
            ("c", "d"),
            ("x", "y"),
            ("y", "x"),
            ("z", "x"),
        ];
        let found = circles(edges);
        assert_eq!(found, [vec!["a", "b"], vec!["x", "y"], vec!["a", "b", "c"]]);
        assert_eq!(
            groups(&found),
            [BTreeSet::from(["a", "b", "c"]), BTreeSet::from(["x", "y"])]
        );
    }
}
