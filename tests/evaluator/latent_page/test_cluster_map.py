"""The map of clusters: what is near on it is alike, and it is the same in every run."""

import numpy as np

from scopemill.evaluator.latent_page.cluster_map import cluster_map

GROUPS, CLUSTERS, LATENTS = 3, 8, 4  # clusters of a group are neighbours of each other


def rows() -> list[dict]:
    random = np.random.default_rng(0)
    made = []
    for latent in range(GROUPS * CLUSTERS * LATENTS):
        cluster, group = latent // LATENTS, latent // LATENTS // CLUSTERS
        own = np.arange(group * CLUSTERS * LATENTS, (group + 1) * CLUSTERS * LATENTS)
        near = random.choice(own[own != latent], 6, replace=False).tolist()
        made.append(
            {"latent": latent, "cluster": cluster * LATENTS, "fired": 9, "top_token": cluster if latent % LATENTS else 99,
             "nearest_latents": near, "nearest_cosines": [0.5] * 6, "cofiring_latents": near[:2], "cofiring_phi": [0.3] * 2}
        )  # fmt: skip
    return made


def test_clusters_that_are_neighbours_lie_together():
    placed = cluster_map(rows())
    assert len(placed) == GROUPS * CLUSTERS and all(0 <= value <= 1 for one in placed for value in (one.x, one.y))
    at = np.array([[one.x, one.y] for one in placed])
    group = np.array([one.cluster // LATENTS // CLUSTERS for one in placed])
    away = np.linalg.norm(at[:, None] - at[None], axis=2)
    np.fill_diagonal(away, np.inf)
    nearest = group[away.argsort(axis=1)[:, :3]]
    assert (nearest == group[:, None]).mean() > 0.9
    assert cluster_map(rows()) == placed


def test_latents_that_never_fired_and_single_ones_are_not_on_it():
    made = rows()
    for row in made[:LATENTS]:
        row["fired"] = 0
    made[LATENTS]["cluster"] = 1  # alone in its cluster
    placed = {one.cluster: one for one in cluster_map(made)}
    assert 0 not in placed and 1 not in placed and placed[LATENTS].latents == LATENTS - 1
    assert placed[2 * LATENTS].tokens == (2, 99), "its most frequent token first"


def test_an_sae_with_few_clusters_or_none_has_a_map_too():
    assert cluster_map([]) == []
    for clusters in (0, 1, 2, 3):
        made = rows()
        for row in made[clusters * LATENTS :]:
            row["fired"] = 0
        assert len(cluster_map(made)) == clusters
