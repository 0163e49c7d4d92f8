package main

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// plotBars draws what each scenario completed a second, a bar for each broker.
func plotBars(path string, reports []*report) error {
	p := plot.New()
	p.Title.Text = "Transfers completed a second"
	p.Y.Min = 0
	width := vg.Points(14)
	var names []string
	for _, x := range reports[0].results {
		names = append(names, x.Name)
	}
	for i, r := range reports {
		values := make(plotter.Values, len(r.results))
		for j, x := range r.results {
			values[j] = x.CompletedPerS
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = plotutil.Color(i), 0
		bars.Offset = vg.Length(i) * width
		p.Add(bars)
		p.Legend.Add(r.name, bars)
	}
	p.Legend.Top = true
	p.NominalX(names...)
	return p.Save(30*vg.Centimeter, 12*vg.Centimeter, path)
}
