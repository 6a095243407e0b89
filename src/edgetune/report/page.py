"""The page of the report as a jinja2 template; `html.py` fills it, and everything it fills in is escaped."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>edgetune {{ command }}: {{ name }}, {{ run.status }}</title>
<style>{{ css | safe }}</style>
</head>
<body>
<header>
<h1>edgetune {{ command }}, {{ name }}</h1>
{% if trouble %}<p class="banner {{ run.status }}" role="alert">{{ trouble }}</p>{% endif %}
<p class="verdict">{% for part in verdict %}<span>{{ part }}</span>{% endfor %}</p>
<dl>{% for key, value in facts %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
</header>
<main>
{% macro grid(table, caption, wraps="") %}
<p class="soft">{{ caption }}</p>
<div class="scroll {{ wraps }}" tabindex="0"><table>
<thead><tr>{% for head in table.head %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr{% if loop.index0 in table.bad %} class="bad"{% endif %}>
{#- -#}<th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{# On a narrow screen a row becomes a card whose cells bear their headings; the roles keep it a table to a reader. #}
{% macro folding(table, caption) %}
<p class="soft">{{ caption }}</p>
<table class="folds" role="table">
<thead role="rowgroup"><tr role="row">
{%- for head in table.head %}<th scope="col" role="columnheader">{{ head }}</th>{% endfor %}</tr></thead>
<tbody role="rowgroup">{% for row in table.rows %}<tr role="row"><th scope="row" role="rowheader">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td role="cell" data-head="{{ table.head[loop.index] }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endmacro %}
{% macro figures(names) %}
{% if drawn | select("in", names) | list %}<div class="figures">
{% for key in names if key in drawn %}<figure><figcaption>{{ drawn[key].title }}</figcaption>
{{ drawn[key].svg | safe }}</figure>
{% endfor %}</div>{% endif %}
{% endmacro %}
{% if no_plots %}<p class="soft">{{ no_plots }}</p>{% endif %}
{% if stages.rows %}<section><h2>By stage</h2>
{{ folding(stages, "Measured on held-out records; loss in nats a token, Rouge-L as F1 in per cent.") }}
{% if divergences.rows %}
{{ folding(divergences,
           "Predictions beside those of the model before compression; mean KL in nats, and its 99.9 % quantile.") }}
{% endif %}
{% for note in notes %}<p>{{ note[:1] | upper }}{{ note[1:] }}.</p>{% endfor %}
{{ figures(["loss-by-stage", "rouge-by-stage", "size-by-stage", "memory-by-stage"]) }}</section>{% endif %}
{% if traffic.rows %}<section><h2>Traffic</h2>
{{ grid(traffic, "Payload of one device in one round, and what it would be with the alternatives.",
        "wraps") }}
{{ figures(["bytes-by-method"]) }}
<p class="soft">{{ total }}</p></section>{% endif %}
{% if rounds.rows %}<section><h2>By round</h2>
{{ figures(["loss-by-round", "rouge-by-round"]) }}
<details{% if no_plots %} open{% endif %}><summary>Every round as a table</summary>
{{ grid(rounds, "Bytes are sums over the devices of the round.") }}</details></section>{% endif %}
{% if hosts %}<section><h2>Devices</h2>
{% for note in hosts %}<p>{{ note }}</p>{% endfor %}
{{ figures(["online-by-round", "transport-by-round"]) }}
{% if devices.rows %}<details{% if few_devices %} open{% endif %}><summary>Every device as a table</summary>
{{ grid(devices,
        "Sums over the rounds that count; a socket carries payloads, requests, encryption, polls and retries.") }}
</details>{% endif %}</section>{% endif %}
{% if layers.rows %}<section><h2>Compression, matrix by matrix</h2>
{{ figures(["layer-errors", "size-against-kl"]) }}
<details{% if no_plots %} open{% endif %}><summary>Every matrix as a table</summary>
{{ grid(layers, "Output error relative to the output, on the calibration text.") }}</details>
</section>{% endif %}
{% macro answered(sample) %}
<article class="sample"><p class="label">Prompt</p><p class="said">{{ sample.prompt }}</p>
<div class="answers" style="--few: {{ sample.few }}; --many: {{ sample.many }}">
<div class="wanted"><h3>expected</h3><p class="said">{{ sample.expected }}</p></div>
{% for stage, answer in sample.answers %}<div><h3>{{ stage }}</h3>
<p class="said">{% if answer.strip() %}{{ answer }}{% else %}<em class="soft">(nothing)</em>{% endif %}</p>
</div>
{% endfor %}</div></article>
{% endmacro %}
{% if samples %}<section><h2>Answers before and after</h2>
{% for sample in samples[:5] %}{{ answered(sample) }}{% endfor %}
{% if samples | length > 5 %}<details><summary>{{ samples | length - 5 }} more</summary>
{% for sample in samples[5:] %}{{ answered(sample) }}{% endfor %}</details>{% endif %}</section>{% endif %}
{% if start %}<section><h2>To do it again</h2>
<p>With the versions below, run:</p>
<pre>{{ start.command }}</pre>
{% if digest %}<p>On the same kind of machine the state after round {{ digest.round }} has the digest
<code>{{ digest.digest }}</code>.</p>{% endif %}
<p>The base model is the one with the digest <code>{{ start.base_digest }}</code>.</p>
<h2>Configuration, as resolved</h2>
<table class="text"><thead><tr><th scope="col">Setting</th><th scope="col">Value</th></tr></thead>
<tbody>{% for key, value in config %}<tr><td><code>{{ key }}</code></td><td><code>{{ value }}</code></td></tr>
{% endfor %}</tbody></table>
<h2>Versions</h2>
<table class="text"><thead><tr><th scope="col">Software</th><th scope="col">Version</th></tr></thead>
<tbody>{% for key, value in start.versions.items() %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}</tbody></table></section>{% endif %}
</main>
</body>
</html>
"""
