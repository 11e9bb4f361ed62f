"""S3: any server of that kind, or a folder in its place.

client     reads, writes and lists objects; the one module that imports boto3
locations  addresses s3://bucket/key
store      tars by their sha256 (`store.objects`), and copies of checkpoints (`store.checkpoints`)

What asks such a server comes in. What a file there means is the caller's, and web servers are in `files`.
"""
