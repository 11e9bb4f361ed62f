"""Search as a service: what `align serve` answers with.

served       a model and its index, checked to belong together
champion     which pair that is, by the registry's alias or by this checkout; the swap
take_downs   which pictures are as if they were not in the index
fetched      a registered version's model and index on this disk
model_queue  queries that come at once are embedded at once
queries      what a request asks, as vectors, filters and pages
decode       decodes foreign pictures in a process that may be killed
limits       bodies, clients, time; counts of requests
answers      the types of requests and answers
app          the endpoints
page/        the page and its script

What answers a request, or bounds what one may cost, comes in. What a query finds is in `align.search`. The verb, which
starts the server and also reads what lineage knows, is `align/serve.py`: this room knows nothing of lineage.
"""
