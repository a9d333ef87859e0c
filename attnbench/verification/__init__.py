"""`attnbench verify`: every mechanism against its oracle, with gradients and as a decode, over dtypes and shapes.

scope.py       the cases                          plan.py      which worker takes which, and how long the rest will take
checking.py    workers on every visible GPU       kept.py      rows of earlier sittings, and whether they still hold
findings.py    rows, condensed                    page.py      a table of that, and a page
"""
