"""The published protocols, one a file: functions of embeddings and of what is right, with nothing around them.

Another protocol comes in with the paper that defines it and a test against its figures or its code. No file is read
here, and no model is run.
"""
