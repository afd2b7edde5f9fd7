"""Tokens that their own form betrays, and that detect-secrets 1.5 does not know, or knows only by their prefix.

The forms (a prefix, an alphabet, a length) are those of the providers' documentation, and agree with the lists of gitleaks 8 and of
GitHub's secret scanning. All patterns are for bytes read as Latin-1, so that offsets are those of the UTF-8 text.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Format(NamedTuple):
    """A kind of token."""

    kind: str
    pattern: re.Pattern[str]


_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"

_CLOUDS = {
    "AWS Session Token": r"\b(?:FwoGZXIvYXdz|IQoJb3JpZ2lu)[\w/+=-]{100,}|\bABSK[A-Za-z0-9+/]{100,}=*",
    "Alibaba Access Key": r"\bLTAI[A-Za-z0-9]{12,24}\b",
    "Azure Client Secret": r"(?<![\w~.])[\w~.]{3}\dQ~[\w~.-]{31,34}",
    "Azure Signature": r"(?<=[?&]sig=)[\w%+/]{40,}=*",
    "ClickHouse Key": r"\b4b1d[A-Za-z0-9]{38}\b",
    "Cloudflare Key": r"\bv1\.0-[0-9a-f]{24}-[0-9a-f]{146}\b",
    "Databricks Token": r"\bdapi[0-9a-f]{32}\b",
    "DigitalOcean Token": r"\bdo[opr]_v1_[0-9a-f]{64}\b",
    "Fly.io Token": r"\bfo1_[\w-]{43}|\bfm[12][ar]?_[A-Za-z0-9+/]{80,}=*",
    "Google API Key": r"\bAIza[\w-]{35}",
    "Google OAuth Secret": r"\bGOCSPX-[\w-]{28}|\bya29\.[\w-]{20,}|\b1//0[\w-]{40,}|\bGOOG[0-9A-Z]{20,}\b",
    "Heroku Key": r"\bHRKU-[\w-]{36,}",
    "Netlify Token": r"\bnfp_[A-Za-z0-9]{36,}\b",
    "OpenShift Token": r"\bsha256~[\w-]{43}",
    "PlanetScale Token": r"\bpscale_(?:tkn|oauth|pw)_[\w=.-]{32,}",
    "Pulumi Token": r"\bpul-[0-9a-f]{40}\b",
    "Render Token": r"\brnd_[A-Za-z0-9]{28,}\b",
    "Scalingo Token": r"\btk-us-[\w-]{48}",
    "Supabase Key": r"\bsbp_[0-9a-f]{40}\b|\bsb_secret_[\w-]{30,}",
    "Tailscale Key": r"\btskey-[a-z]{3,10}-[\w-]{20,}",
    "Terraform Token": r"\b[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,}",
    "Vault Token": r"\bhv[sbr]\.[\w-]{24,}|(?<![\w.])s\.(?=[A-Za-z]*\d)[A-Za-z0-9]{24}\b",
    "Yandex Key": r"\bAQVN[\w-]{35,38}\b|\bt1\.[\w-]+=*\.[\w-]{86}",
}
_CODE_HOSTS = {
    "Artifactory Key": r"\bAKCp[A-Za-z0-9]{69}\b|\bcmVmd[A-Za-z0-9]{59}\b",
    "Atlassian Token": r"\bAT[AC]TT3[\w=-]{100,}|\bATBB[A-Za-z0-9_=.-]{32,}",
    "Buildkite Token": r"\bbk[a-z]{2}_[0-9a-f]{40}\b",
    "CircleCI Token": r"\bCCIPAT_[A-Za-z0-9]{20,24}_[0-9a-f]{40}\b",
    "Clojars Token": r"\bCLOJARS_[0-9a-z]{60}\b",
    "Docker Token": r"\bdckr_[po]at_[\w-]{27,}",
    "Doppler Token": r"\bdp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{40,}",
    "GitHub Token": r"\bgithub_pat_\w{22,}|\bgh[opsur]_\w{36,}",
    "GitLab Token": r"\bgl(?:pat|dt|ft|ffct|soat|rt|cbt|imt|ptt|agent|oas|wt)-[\w-]{20,}|\bGR1348941[\w-]{20,}",
    "Harness Token": r"\b[ps]at\.[\w-]{22}\.[0-9a-f]{24}\.[A-Za-z0-9]{20}\b",
    "Infracost Key": r"\bico-[A-Za-z0-9]{32}\b",
    "LaunchDarkly Key": rf"\b(?:api|sdk)-{_UUID}",
    "NPM Token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "NuGet Key": r"\boy2[a-z0-9]{43}\b",
    "Octopus Key": r"\bAPI-[A-Z0-9]{26}\b",
    "Prefect Token": r"\bpn[ub]_[A-Za-z0-9]{36}\b",
    "PyPI Token": r"\bpypi-AgE[\w-]{50,}",
    "ReadMe Key": r"\brdme_[a-z0-9]{70}\b",
    "RubyGems Key": r"\brubygems_[0-9a-f]{48}\b",
    "SonarQube Token": r"\bsq[apu]_[0-9a-f]{40}\b",
    "Sourcegraph Token": r"\bsgp_(?:[0-9a-f]{16}_|local_)?[0-9a-f]{40}\b",
}
_MODELS = {
    "Anthropic API Key": r"sk-ant-[\w-]{20,}",
    "Apify Key": r"\bapify_api_[A-Za-z0-9]{36}\b",
    "Groq Key": r"\bgsk_[A-Za-z0-9]{40,}\b",
    "Hugging Face Token": r"\b(?:hf|api_org)_[A-Za-z]{34}\b|\bhf_[A-Za-z0-9]{34}\b",
    "Jina Key": r"\bjina_[\w-]{50,}",
    "LangSmith Key": r"\blsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}\b",
    "Langfuse Key": rf"\bsk-lf-{_UUID}",
    "NVIDIA Key": r"\bnvapi-[\w-]{60,}",
    "OpenAI Token": r"\bsk-(?:proj-|svcacct-|admin-)?[\w-]*T3BlbkFJ[\w-]{20,}|\bsk-[A-Za-z0-9]{48}\b|\bsk-proj-[\w-]{40,}",
    "OpenRouter Key": r"\bsk-or-v1-[0-9a-f]{64}\b|\bsk-[0-9a-f]{32}\b|\bsk_[0-9a-f]{48}\b",
    "Perplexity Key": r"\bpplx-[A-Za-z0-9]{40,}\b",
    "Pinecone Key": r"\bpcsk_\w{50,}",
    "Replicate Token": r"\br8_[A-Za-z0-9]{37}\b",
    "Tavily Key": r"\btvly-(?:dev-|prod-)?[A-Za-z0-9]{32}\b",
    "xAI Key": r"\bxai-[A-Za-z0-9]{70,}\b",
}
_SERVICES = {
    "1Password Key": r"\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}\b|\bops_eyJ[A-Za-z0-9+/]{200,}",
    "Adobe Secret": r"\bp8e-[A-Za-z0-9]{32}\b",
    "Airtable Token": r"\bpat[A-Za-z0-9]{14}\.[0-9a-f]{64}\b",
    "Asana Token": r"(?<!\d)[12]/\d{16}:[0-9a-f]{32}\b",
    "Contentful Token": r"\bCFPAT-[\w-]{43}",
    "Defined Networking Token": r"\bdnkey-[\w=-]{26}-[\w=-]{52}",
    "Discord Webhook": r"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,}",
    "Dropbox Token": r"\bsl\.[\w-]{120,}",
    "Duffel Token": r"\bduffel_(?:test|live)_[\w=-]{43}",
    "Dynatrace Token": r"\bdt0[a-z]\d\d\.[A-Z0-9]{24}\.[A-Z0-9]{64}\b",
    "EasyPost Key": r"\bEZ[AT]K[A-Za-z0-9]{54}\b",
    "Facebook Token": r"\bEAA[A-Za-z0-9]{90,}|\b\d{15,16}\|[\w-]{27,40}\b",
    "Figma Token": r"\bfig[dor]_[\w-]{40,}",
    "Flutterwave Key": r"\bFLW(?:SECK|PUBK)(?:_TEST)?-[0-9a-h]{12,32}\b",
    "Frame.io Token": r"\bfio-u-[\w=-]{64}",
    "Grafana Token": r"\bglsa_[A-Za-z0-9]{32}_[0-9a-f]{8}\b|\bglc_[A-Za-z0-9+/]{32,}|\beyJrIjoi[A-Za-z0-9]{60,}=*",
    "HubSpot Token": rf"\bpat-[a-z]{{2}}\d-{_UUID}",
    "Linear API Key": r"\blin_(?:api|oauth)_[A-Za-z0-9]{40,}",
    "Lob Key": r"\b(?:live|test)_(?:pub_)?[0-9a-f]{31,35}\b",
    "Mailgun Key": r"\b(?:pub)?key-[0-9a-f]{32}\b|\b[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}\b",
    "Mapbox Token": r"\b[pst]k\.eyJ[\w-]{20,}\.[\w-]{20,}",
    "MaxMind Key": r"\b[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk\b",
    "New Relic Key": r"\bNR(?:AK|II|IQ|RA)-[\w-]{26,}|\bNRJS-[0-9a-f]{19}\b|\b[0-9a-f]{36}NRAL\b",
    "Notion Token": r"\bntn_[A-Za-z0-9]{40,}\b|\bsecret_[A-Za-z0-9]{43}\b",
    "Plaid Token": rf"\baccess-(?:sandbox|development|production)-{_UUID}",
    "PostHog Key": r"\bph[cx]_[A-Za-z0-9]{40,}\b",
    "Postman API Key": r"\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}\b",
    "Resend Key": r"\bre_[A-Za-z0-9]{6,10}_[A-Za-z0-9]{20,}\b",
    "SendGrid API Key": r"\bSG\.[\w-]{16,32}\.[\w-]{32,64}",
    "Sendinblue Key": r"\bx(?:key|smtp)sib-[0-9a-f]{64}-[A-Za-z0-9]{16}\b",
    "Sentry Token": r"\bsntryu_[0-9a-f]{64}\b|\bsntrys_[\w+/=]{40,}|(?<=://)[0-9a-f]{32}(?=@[\w.]{0,40}sentry)",
    "SettleMint Token": r"\bsm_[aps]at_[A-Za-z0-9]{16}\b",
    "Shippo Token": r"\bshippo_(?:live|test)_[0-9a-f]{40}\b",
    "Shopify Token": r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b",
    "Slack Token": r"\bxox[abeoprs](?:\.xox[bp])?-[\w-]{10,}|\bxapp-\d-[\w-]{20,}",
    "Slack Webhook": r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{30,}",
    "Square Token": r"\bsq0[a-z]{3}-[\w-]{22,}|\bEAAA[\w-]{56,}",
    "Stripe Access Key": r"\b(?:sk|rk)_(?:live|test|prod)_[0-9a-zA-Z]{10,}|\bwhsec_[A-Za-z0-9+/=]{32,}",
    "Teams Webhook": rf"\.webhook\.office\.com/webhookb2/{_UUID}@{_UUID}/IncomingWebhook/\w{{32}}/{_UUID}",
    "Twilio API Key": r"\b(?:AC|SK)[0-9a-fA-F]{32}\b",
    "Twitter Bearer Token": r"\bA{15,}[\w%]{60,}",
    "Typeform Token": r"\btfp_[\w.=-]{40,}",
    "Zapier Webhook": r"hooks\.zapier\.com/hooks/catch/[\w/]{10,}",
    "age Key": r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b",
}
_OPEN = {
    "JSON Web Token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?",
    "Bearer Token": r"(?i:\bbearer\s+)[\w.~+/-]{20,}=*",
    "Basic Authorization": r"(?i:authorization[\"']?\s*[:=,]\s*[\"']?basic\s+)[A-Za-z0-9+/]{16,}=*",
}
BEHIND_A_WORD = frozenset({"Bearer Token", "Basic Authorization"})
"""Kinds of which only what stands behind the last space is secret."""
FORMATS = tuple(
    Format(kind, re.compile(pattern)) for table in (_CLOUDS, _CODE_HOSTS, _MODELS, _SERVICES, _OPEN) for kind, pattern in table.items()
)
