"""Other people's evaluation tools over our models; no verb and no stage imports this folder, and it needs no such tool
to be imported.
"""
