"""`align gc`: removes what is older than the section `retention` keeps, and nothing that anybody may still need."""
