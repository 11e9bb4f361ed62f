"""Web archives: WARC and WAT, whole or damaged, with the codings that servers used.

What is known of the container and of HTTP comes in. What a page says about its pictures is read by `pages`, for saved
pages too.
"""
