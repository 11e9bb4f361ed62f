"""What people look at, in terminals, pages and plots; how it looks, never what it says.

console    lines and progress
visible    foreign text made harmless to terminals and Markdown
html       pages without anything from elsewhere
figure     plots
shares     shares in per cent
report     the files of a stage's report

How anything looks comes in; what it says is its stage's. No stage depends on how its page looks, see
`align.project.provenance`.
"""
