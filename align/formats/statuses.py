"""What column `status` of data/raw says of a picture, in img2dataset's words.

This is not in `raw`, which imports Arrow.
"""

SUCCESS = "success"
#: There are no bytes: no response, or one whose status is not 200.
FAILED_TO_DOWNLOAD = "failed_to_download"
#: There are bytes, but no picture can be decoded from them (img2dataset decodes in order to resize; hence the name).
FAILED_TO_RESIZE = "failed_to_resize"
#: Our own status: the picture was not asked for, since the filter would drop each of its pairs by its text alone.
NOT_FETCHED = "not_fetched"
