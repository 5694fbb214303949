//! The sequence of operations, family by family.

use super::op::Step;

/// Steps; what follows an arrow is the accepted difference that the step shows.
macro_rules! steps {
    (@differs) => { None };
    (@differs $differs:literal) => { Some($differs) };
    ($($op:expr $(=> $differs:literal)?),* $(,)?) => {
        vec![$(Step { op: $op, differs: steps!(@differs $($differs)?) }),*]
    };
}

mod making;
mod using;

/// Two IDs with a common beginning, and one without.
const BASE: &str = "5eed5eed0000000000000000000000000000000000000000000000000000aaaa";
const UPPER: &str = "5eed5eed1111111111111111111111111111111111111111111111111111bbbb";
const IMAGE: &str = "1abe1abe2222222222222222222222222222222222222222222222222222cccc";

/// Text that every JSON writer escapes in its own way.
const ODD_TEXT: &str = "{\"a\": \"<b> & 'c'\"}\\ \t\u{8}\u{1f}\u{7f}\u{2028} \u{fc}ml\u{e4}ut \u{1f980}";

/// The whole sequence.
pub(super) fn script() -> Vec<Step> {
    let families = [
        making::empty_store,
        making::layers,
        making::imports,
        making::refused_imports,
        making::images,
        making::image_data,
        making::containers,
        making::other_data,
        using::names,
        using::metadata,
        using::mounts,
        using::writing,
        using::diffs,
        using::applied_diffs,
        using::owners,
        using::deletions,
        using::the_end,
    ];
    families.iter().flat_map(|family| family()).collect()
}
