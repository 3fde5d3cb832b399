for (const spec of document.querySelectorAll('script[type="application/json"]'))
  vegaEmbed(spec.previousElementSibling, JSON.parse(spec.textContent),
            {mode: "vega-lite", renderer: "svg", ast: true, actions: false});
