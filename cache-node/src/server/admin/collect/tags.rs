//! The tag index.

use super::{BYTES, ENTRIES, Export, Facts, HEALTH, counter, extra, gauge};
use crate::{
    layer::metered::LATENCY,
    metrics::{Definition, Samples},
};

const REMOVALS: Definition = counter("tieredcache_tag_removals_total", "Removals by tag that this node made.", &[]);
const REMOVALS_MAX: Definition =
    gauge("tieredcache_tag_removals_max", "Removals by tag that are remembered one by one at most.", &[]);
const DEAD_READS: Definition =
    counter("tieredcache_tag_dead_reads_total", "Copies that a read met and that were removed by a tag.", &[]);
const FLOOR: Definition = counter(
    "tieredcache_tag_floor_raised_total",
    "Times that there were too many removals, so that all older tagged entries were given up.",
    &[],
);

pub(super) const TAGS: Export = Export {
    name: "tagIndex",
    definitions: &[HEALTH, LATENCY, ENTRIES, BYTES, REMOVALS, REMOVALS_MAX, DEAD_READS, FLOOR],
    read: tags,
};

fn tags(Facts { stats, .. }: &Facts<'_>, samples: &mut Samples) {
    samples.put(&REMOVALS, &[], extra(stats, "removals"));
    samples.put(&REMOVALS_MAX, &[], extra(stats, "removalsMax"));
    samples.put(&DEAD_READS, &[], extra(stats, "deadReads"));
    samples.put(&FLOOR, &[], extra(stats, "floorRaised"));
}
