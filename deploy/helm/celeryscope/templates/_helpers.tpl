{{- define "celeryscope.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* celeryscope.selector (dict "root" $ "component" "monitor") */}}
{{- define "celeryscope.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "celeryscope.labels" -}}
{{ include "celeryscope.selector" . }}
app.kubernetes.io/part-of: celeryscope
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The image: a part's own fields count before the common ones. */}}
{{- define "celeryscope.image" -}}
{{- $image := .root.Values.image -}}
{{- $own := default dict .values.image -}}
{{- $repository := default $image.repository $own.repository -}}
{{- $digest := $own.digest | default (ternary "" $image.digest (not (empty $own.repository))) -}}
{{- if $digest -}}
{{ $repository }}@{{ $digest }}
{{- else -}}
{{ $repository }}:{{ $own.tag | default (ternary "latest" "" (not (empty $own.repository))) | default $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The names of the Secrets: the user's, or else ours. */}}
{{- define "celeryscope.brokerSecret" -}}
{{- .Values.broker.existingSecret | default (printf "%s-broker" (include "celeryscope.fullname" .)) -}}
{{- end -}}
{{- define "celeryscope.alerterSecret" -}}
{{- printf "%s-alerter" (include "celeryscope.fullname" .) -}}
{{- end -}}
{{- define "celeryscope.flowerSecret" -}}
{{- .Values.flower.auth.existingSecret | default (printf "%s-flower" (include "celeryscope.fullname" .)) -}}
{{- end -}}

{{/* Variables from a map of settings, as docs/configuration.md names them. */}}
{{- define "celeryscope.settings" -}}
{{- range $name, $value := . }}
- name: CELERYSCOPE_{{ $name | upper }}
  {{- /* Helm reads numbers as floats, and would write a large one as 1e+06. */}}
  value: {{ if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ int64 $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end -}}
