-- Run once by postgres' image, after it made the database of Prefect. The password of both is POSTGRES_PASSWORD.
CREATE DATABASE mlflow OWNER align;
