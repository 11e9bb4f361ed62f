"""Take-downs: `align opt_out` records what people opted out, and with --purge removes its bytes.

opt_out          the verb, and what it prints
requests         files of keys, addresses and hosts, as entries of the policy; which of these cover nothing
opted_out_pairs  the pairs of data/raw that the policy takes out
look_into        does one file show an opted-out picture or text?
search           the objects of DVC's cache and remotes that show one
purge            removes them, and proves it; a killed purge is completed by the next one
purge_raw        rewrites shards of data/raw without these pairs; the tars that a manifest names

What finds or removes bytes of a taken-down pair belongs here. The policy that later runs obey is in `formats/`. The
only room of lineage that this one knows is `versions`.
"""
