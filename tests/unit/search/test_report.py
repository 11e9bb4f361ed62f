"""The page of queries and their answers."""

from align.search.report import AnsweredQuery, search_page


def test_of_many_queries_the_first_are_open_and_the_others_open_at_a_click():
    queries = [AnsweredQuery(f"query {number}", None, [], number % 2 == 0) for number in range(6)]
    page = search_page("Search", "l", {"Queries": queries, "None": []})
    assert "<h1>Search</h1>" in page
    assert page.count("<details>") == 3 and page.index("query 2</b>") < page.index("<details>")
    assert "<summary>query 3: wrong</summary>" in page and "<summary>query 4: right</summary>" in page
