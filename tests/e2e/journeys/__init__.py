"""What a person does in the first hours with data or a model of one's own: a page of commands each, run as typed."""
