{{/* A way in, over TLS: (list $ "mlflow" .Values.mlflow.ingress). */}}
{{- define "secateur.ingress" -}}
{{- $top := index . 0 }}{{- $component := index . 1 }}{{- $ingress := index . 2 -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "secateur.metadata" (list $top $component) | nindent 2 }}
  {{- with $ingress.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with $ingress.className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  tls:
    - hosts: [{{ $ingress.host | quote }}]
      secretName: {{ $ingress.tlsSecretName | quote }}
  rules:
    - host: {{ $ingress.host | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend: {service: {name: {{ $top.Release.Name }}-{{ $component }}, port: {name: http}}}
{{- end }}
