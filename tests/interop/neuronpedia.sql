-- The tables of Neuronpedia's database that an import fills, with the columns, defaults and keys that matter to one.
create type visibility as enum ('PUBLIC', 'UNLISTED', 'PRIVATE');
create table "User" (id text primary key);
create table "SourceRelease" (
  name text primary key, visibility visibility not null default 'PRIVATE', "isNewUi" boolean not null default false,
  featured boolean not null default false, description text not null, "descriptionShort" text, urls text[], "creatorEmail" text,
  "creatorName" text not null, "creatorNameShort" text, "creatorId" text not null references "User", "defaultSourceSetName" text,
  "defaultSourceId" text, "defaultUmapSourceIds" text[] default '{}', "createdAt" timestamp(3) not null default now());
create table "Model" (
  id text primary key, "displayNameShort" text not null default '', "displayName" text not null default '',
  "creatorId" text not null references "User", "tlensId" text, dimension int, thinking boolean not null default false,
  visibility visibility not null default 'PRIVATE', "defaultSourceSetName" text, "defaultSourceId" text,
  "inferenceEnabled" boolean not null default false, instruct boolean not null default false, layers int not null,
  "neuronsPerLayer" int not null, owner text not null, website text, "createdAt" timestamp(3) not null default now(),
  "updatedAt" timestamp(3) not null default now());
create table "SourceSet" (
  "modelId" text not null references "Model", name text not null, "hasDashboards" boolean not null default true,
  "allowInferenceSearch" boolean not null default true, visibility visibility not null default 'PRIVATE', description text not null,
  type text not null default '', "creatorName" text not null, urls text[], "creatorEmail" text,
  "creatorId" text not null references "User", "releaseName" text references "SourceRelease", "defaultRange" int not null default 1,
  "defaultShowBreaks" boolean not null default true, "showDfa" boolean not null default false, "showCorrelated" boolean not null default false,
  "showHeadAttribution" boolean not null default false, "showUmap" boolean not null default false,
  "createdAt" timestamp(3) not null default now(), unique ("modelId", name));
alter table "Model" add foreign key (id, "defaultSourceSetName") references "SourceSet" ("modelId", name);
create table "Source" (
  id text not null, "modelId" text not null, "hasDashboards" boolean not null default true, "inferenceEnabled" boolean not null default false,
  "saelensConfig" jsonb, "saelensRelease" text, "saelensSaeId" text, "hfRepoId" text, "hfFolderId" text,
  visibility visibility not null default 'PRIVATE', "setName" text not null, "creatorId" text not null references "User",
  num_prompts int, num_tokens_in_prompt int, dataset text, notes text, "createdAt" timestamp(3) not null default now(),
  unique ("modelId", id), foreign key ("modelId", "setName") references "SourceSet" ("modelId", name));
create table "Neuron" (
  "modelId" text not null references "Model", layer text not null, index text not null, "sourceSetName" text, "creatorId" text references "User",
  "createdAt" timestamp(3) not null default now(), "maxActApprox" double precision default 0, "hasVector" boolean not null default false,
  vector double precision[] default '{}', "vectorLabel" text, "vectorDefaultSteerStrength" double precision default 10, "hookName" text,
  "topkCosSimIndices" int[] default '{}', "topkCosSimValues" double precision[] default '{}',
  neuron_alignment_indices int[] default '{}', neuron_alignment_values double precision[] default '{}',
  neuron_alignment_l1 double precision[] default '{}', correlated_neurons_indices int[] default '{}',
  correlated_neurons_pearson double precision[] default '{}', correlated_neurons_l1 double precision[] default '{}',
  correlated_features_indices int[] default '{}', correlated_features_pearson double precision[] default '{}',
  correlated_features_l1 double precision[] default '{}', neg_str text[] default '{}', neg_values double precision[] default '{}',
  pos_str text[] default '{}', pos_values double precision[] default '{}', frac_nonzero double precision not null default 0,
  freq_hist_data_bar_heights double precision[] default '{}', freq_hist_data_bar_values double precision[] default '{}',
  logits_hist_data_bar_heights double precision[] default '{}', logits_hist_data_bar_values double precision[] default '{}',
  decoder_weights_dist double precision[] default '{}',
  unique ("modelId", layer, index), foreign key ("modelId", layer) references "Source" ("modelId", id),
  foreign key ("modelId", "sourceSetName") references "SourceSet" ("modelId", name));
create table "Activation" (
  id text primary key, tokens text[], "dataIndex" text, index text not null, layer text not null, "modelId" text not null, "dataSource" text,
  "maxValue" double precision not null, "maxValueTokenIndex" int not null, "minValue" double precision not null, "values" double precision[],
  "dfaValues" double precision[] default '{}', "creatorId" text not null references "User", "createdAt" timestamp(3) not null default now(),
  "lossValues" double precision[] default '{}', "binMin" double precision, "binMax" double precision, "binContains" double precision,
  "qualifyingTokenIndex" int, foreign key ("modelId", layer, index) references "Neuron" ("modelId", layer, index));
create table "ExplanationType" (name text primary key);
create table "ExplanationModelType" (name text primary key);
create table "Explanation" (
  id text primary key, "modelId" text not null, layer text not null, index text not null, description text not null,
  "authorId" text not null references "User", notes text, "scoreV1" double precision not null default 0, "scoreV2" double precision,
  "typeName" text references "ExplanationType", "explanationModelName" text references "ExplanationModelType",
  "createdAt" timestamp(3) not null default now(), foreign key ("modelId", layer, index) references "Neuron" ("modelId", layer, index));
