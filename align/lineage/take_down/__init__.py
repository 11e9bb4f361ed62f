"""Take-downs: `align opt_out` records what people opted out, and with --purge removes its bytes.

opt_out     the verb, and what it prints
requests    files of keys, addresses and hosts, as entries of the policy; what else these entries cover
purge_plan  the pairs that the policy takes out; what --purge removes, and what it cannot
purge       removes it, so that a killed purge is completed by the next one
purge_raw   rewrites shards of data/raw without these pairs

What finds or removes bytes of a taken-down pair belongs here. The policy that later runs obey is in `formats/`. The
only room of lineage that this one knows is `versions`.
"""
