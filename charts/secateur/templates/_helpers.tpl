{{/* Names. Those that the Airflow chart uses as well depend on the release alone. */}}
{{- define "secateur.placementName" -}}{{ .Release.Name }}-placement{{- end }}
{{- define "secateur.recipesName" -}}{{ .Release.Name }}-recipes{{- end }}
{{- define "secateur.authoritiesName" -}}{{ .Values.global.secateur.authoritiesConfigMapName | default (printf "%s-no-authorities" .Release.Name) }}{{- end }}
{{- define "secateur.environmentName" -}}{{ .Release.Name }}-environment{{- end }}

{{/* What the Airflow chart calls its own objects. */}}
{{- define "secateur.airflowName" -}}
{{- if .Values.airflow.fullnameOverride }}{{ .Values.airflow.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains "airflow" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-airflow" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of a component: (list $ "mlflow"). */}}
{{- define "secateur.selector" -}}
app.kubernetes.io/name: secateur
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "secateur.labels" -}}
{{ include "secateur.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* A name and labels: (list $ "mlflow"). */}}
{{- define "secateur.metadata" -}}
name: {{ (index . 0).Release.Name }}-{{ index . 1 }}
labels: {{- include "secateur.labels" . | nindent 2 }}
{{- end }}

{{- define "secateur.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{/* The restricted pod security standard: (list uid gid). */}}
{{- define "secateur.podSecurity" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ index . 0 }}
  runAsGroup: {{ index . 1 }}
  fsGroup: {{ index . 1 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "secateur.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "secateur.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "secateur.nodes" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Variables from a secret's keys of the same names: (list "secret" "KEY" ...). */}}
{{- define "secateur.fromSecret" -}}
{{- range rest . }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ first $ | quote }}, key: {{ . }}}}
{{- end }}
{{- end }}

{{/* What a step is told, by the Airflow chart too. */}}
{{- define "secateur.environmentFrom" -}}
- configMapRef: {name: {{ include "secateur.environmentName" . }}}
{{- end }}

{{- define "secateur.stepsEnvironment" -}}
{{- include "secateur.fromSecret" (list .Values.global.secateur.stepsSecretName "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD") | trim }}
- name: SECATEUR_NOTIFY_WEBHOOK
  valueFrom: {secretKeyRef: {name: {{ .Values.global.secateur.stepsSecretName | quote }}, key: SECATEUR_NOTIFY_WEBHOOK, optional: true}}
{{- end }}

{{/* What Airflow's parts share, for workers and jobs of this chart. */}}
{{- define "secateur.airflowEnvironment" -}}
{{- $airflow := .Values.airflow -}}
- name: AIRFLOW__DATABASE__SQL_ALCHEMY_CONN
  valueFrom: {secretKeyRef: {name: {{ $airflow.data.metadataSecretName | quote }}, key: connection}}
- name: AIRFLOW__CORE__FERNET_KEY
  valueFrom: {secretKeyRef: {name: {{ $airflow.fernetKeySecretName | quote }}, key: fernet-key}}
- name: AIRFLOW__API__SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ $airflow.apiSecretKeySecretName | quote }}, key: api-secret-key}}
{{- if contains "CeleryExecutor" $airflow.executor }}
- name: AIRFLOW__CELERY__BROKER_URL
  valueFrom: {secretKeyRef: {name: {{ $airflow.data.brokerUrlSecretName | quote }}, key: connection}}
{{- end }}
{{- end }}

{{/* Whom servers are trusted by, in the variables of each client. */}}
{{- define "secateur.authorities" -}}
{{- if .Values.global.secateur.authoritiesConfigMapName }}
{{- range list "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" "SSL_CERT_FILE" "PGSSLROOTCERT" }}
{{ . }}: /etc/secateur-authorities/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "secateur.authoritiesEnvironment" -}}
{{- range $name, $value := include "secateur.authorities" . | fromYaml }}
- {name: {{ $name }}, value: {{ $value }}}
{{- end }}
{{- end }}

{{- define "secateur.authoritiesMount" -}}
- {name: authorities, mountPath: /etc/secateur-authorities, readOnly: true}
{{- end }}

{{- define "secateur.authoritiesVolume" -}}
- {name: authorities, configMap: {name: {{ include "secateur.authoritiesName" . | quote }}, optional: true}}
{{- end }}

{{/* Airflow's home is a volume, with the Airflow chart's configuration in it. */}}
{{- define "secateur.airflowMounts" -}}
- {name: home, mountPath: /opt/airflow}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: airflow-config, mountPath: /opt/airflow/airflow.cfg, subPath: airflow.cfg, readOnly: true}
- {name: placement, mountPath: /etc/secateur, readOnly: true}
- {name: recipes, mountPath: /etc/secateur-recipes, readOnly: true}
{{ include "secateur.authoritiesMount" . }}
{{- end }}

{{- define "secateur.airflowVolumes" -}}
- {name: home, emptyDir: {}}
- {name: tmp, emptyDir: {}}
- {name: shm, emptyDir: {medium: Memory}}
- {name: airflow-config, configMap: {name: {{ include "secateur.airflowName" . }}-config}}
- {name: placement, configMap: {name: {{ include "secateur.placementName" . }}}}
- {name: recipes, configMap: {name: {{ include "secateur.recipesName" . }}, optional: true}}
{{ include "secateur.authoritiesVolume" . }}
{{- end }}

{{/* A place in the form of the file that SECATEUR_PLACEMENT names. */}}
{{- define "secateur.place" -}}
{{- $place := dict }}
{{- range $key, $name := dict "queue" "queue" "cpus" "cpus" "memoryGb" "memory_gb" "gpus" "gpus" "nodeSelector" "node_selector" "tolerations" "tolerations" }}
{{- if hasKey $ $key }}{{ $_ := set $place $name (get $ $key) }}{{ end }}
{{- end }}
{{- toYaml $place }}
{{- end }}

{{/* A target with what it does not say of cpus, memoryGb and gpus: that of the bench. */}}
{{- define "secateur.target" -}}
{{- toYaml (merge (deepCopy (index . 1)) (pick (index . 0).Values.steps.bench "cpus" "memoryGb" "gpus")) }}
{{- end }}

{{/* MLflow's database, without the password: that is PGPASSWORD's. */}}
{{- define "secateur.mlflowDatabase" -}}
{{- $database := .Values.mlflow.database -}}
{{- $host := ternary (printf "%s-postgres" .Release.Name) $database.host .Values.demo.enabled -}}
{{- $sslmode := ternary "disable" $database.sslmode .Values.demo.enabled -}}
postgresql+psycopg2://{{ $database.user }}@{{ $host }}:{{ $database.port }}/{{ $database.name }}?sslmode={{ $sslmode }}
{{- end }}

{{- define "secateur.bucketEndpoint" -}}
{{- ternary (printf "http://%s-s3:9000" .Release.Name) .Values.bucket.endpoint .Values.demo.enabled }}
{{- end }}
