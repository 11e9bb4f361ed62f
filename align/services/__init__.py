"""The outside world, one file or room per vendor: a new server, engine or library of search is a change only here.

executors/ has the clusters that do tasks, tracking/ is MLflow, s3/ a store of objects, files/ what sources read, also
from web servers. The rest are files: DuckDB and Spark (engine, spark_engine), DVC as a program (dvc), faiss
(vector_index), Great Expectations (expectations), model-signing (signing).

Whatever needs a vendor's package, or an address from the environment, comes in. What a stage does with the answer stays
in the stage, which sees `align/interfaces/`.
"""
