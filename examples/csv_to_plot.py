"""A CSV goes in; statistics, a picture and the chart's numbers come out."""

import base64
import sys

from e2b_code_interpreter import Sandbox

CSV = """\
city,month,visitors
Bergen,2024-01,120
Bergen,2024-02,180
Bergen,2024-03,240
Turku,2024-01,90
Turku,2024-02,60
Turku,2024-03,150
"""

ANALYSIS = """\
import pandas as pd
visits = pd.read_csv('/home/user/visitors.csv', parse_dates=['month'])
visits.groupby('city').visitors.agg(['sum', 'mean']).reset_index()
"""

PLOT = """\
import matplotlib.pyplot as plt
for city, rows in visits.groupby('city'):
    plt.plot(rows.month, rows.visitors, label=city)
plt.title('Visitors by month')
plt.ylabel('visitors (persons)')
plt.legend()
plt.show()
"""


def main(picture):
    with Sandbox.create() as sandbox:
        sandbox.files.write("/home/user/visitors.csv", CSV)
        table = sandbox.run_code(ANALYSIS)
        if table.error:
            raise SystemExit(table.error.traceback)
        for city, total in zip(table.results[0].data["city"], table.results[0].data["sum"]):
            print(f"{city}: {total}")

        # The second cell finds what the first one made.
        plot = sandbox.run_code(PLOT).results[0]
        with open(picture, "wb") as file:
            file.write(base64.b64decode(plot.png))
        print(f"{plot.chart.title} ({plot.chart.y_unit}), saved to {picture}")
        for line in plot.chart.elements:
            print(f"{line.label}: {[visitors for _, visitors in line.points]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "visitors.png")
