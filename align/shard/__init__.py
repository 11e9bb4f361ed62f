"""How `align shard` works: plan which image goes where, gather their bytes, write tars and the manifest."""
