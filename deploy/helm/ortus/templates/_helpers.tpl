{{- define "ortus.labels" -}}
app.kubernetes.io/name: {{ .Release.Name }}
{{- end }}
