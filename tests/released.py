"""What the authors' released code computes for Eq. 7-11, bugs included: numpy twins of losses.py.

The product has none of these; they are here so that the tests can show, number by number, where
and why it differs. Depth is in metres, a hole is a 0, maps are (h, w) or (N, h, w).

    silog          one valid pixel has no unbiased variance: NaN. L_silog takes 0 for it.
    gradient       the mask is taken from differences that were cleaned before: it masks nothing, so
                   beside every hole the prediction is pulled flat, and the mean runs over all
                   positions. L_grad masks both sides and averages over what is valid (Fig. 4).
    vnl            a triplet that touches a hole counts as a loss of 0, so the loss shrinks with the
                   share of holes, and the dropped easiest quarter is spent on them. The camera is
                   the NYUv2 Kinect with its centre at w//2, h//2, whatever was cropped. L_vnl
                   leaves such triplets out and is given K.
    robust         as L_robust (Eq. 10 with the "+ 1" that the paper forgets).
    dynamic        as DepthLoss with dynamic_weights, with a formula that the paper does not print.
"""

import numpy as np


def silog(pred: np.ndarray, gt: np.ndarray) -> float:
    """Eq. 7 with alpha = 1, lambda = 0.85 and the variance over n - 1."""
    g = np.log(pred[gt > 0] + 1e-3) - np.log(gt[gt > 0] + 1e-3)
    with np.errstate(invalid="ignore", divide="ignore"):
        var = ((g - g.mean()) ** 2).sum() / np.float64(g.size - 1)
    return np.sqrt(var + 0.15 * g.mean() ** 2)


def gradient(pred: np.ndarray, gt: np.ndarray) -> float:
    """Eq. 8 over every position."""
    gt = np.where(gt > 0, gt, np.inf)
    loss = 0.0
    for axis in (-1, -2):
        with np.errstate(invalid="ignore"):
            d_gt = np.diff(gt, axis=axis)
        d_gt[~np.isfinite(d_gt)] = 0
        d_pred = np.diff(pred, axis=axis)
        d_pred[~np.isfinite(d_gt)] = 0  # the bug: d_gt is finite everywhere by now
        loss += np.abs(d_pred - d_gt).mean()
    return loss


def vnl(pred: np.ndarray, gt: np.ndarray, triplets: np.ndarray) -> float:
    """Eq. 9 for (N, h, w) maps and (3, count) pixel numbers, the same for every image."""
    P_pred, P_gt = points(pred), points(np.where(gt > 0, gt, np.inf))
    p_pred, p_gt = P_pred[:, triplets], P_gt[:, triplets]  # (N, 3 corners, count, xyz)
    keep = _filter(p_pred)
    if not keep.any():
        return 0.0
    n_pred, n_gt = normals(p_pred), normals(p_gt)
    bad = ~np.isfinite(n_gt).all(-1)
    n_pred[bad], n_gt[bad] = 0, 0  # ... and the zeros stay in the sort and in the mean
    loss = np.sort(np.abs(n_pred - n_gt).sum(-1)[keep])
    return loss[int(0.25 * loss.size) :].mean()


def points(z: np.ndarray) -> np.ndarray:
    """(N, h, w) -> (N, h * w, 3), with NYUv2's focal lengths scaled from 480x640."""
    h, w = z.shape[1:]
    fx, fy = 518.85790117450188 * w / 640, 519.46961112127485 * h / 480
    v, u = np.mgrid[:h, :w]
    with np.errstate(invalid="ignore"):
        x, y = (u - w // 2) * np.abs(z) / fx, (v - h // 2) * np.abs(z) / fy
    return np.stack([x, y, z], -1).reshape(len(z), h * w, 3)


def normals(p: np.ndarray) -> np.ndarray:
    """(N, 3 corners, count, xyz) -> (N, count, xyz)."""
    with np.errstate(invalid="ignore"):
        n = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
        length = np.linalg.norm(n, axis=-1, keepdims=True)
        return n / (length + 0.01 * (length == 0))


def _filter(p: np.ndarray) -> np.ndarray:
    """Triplets that stay, judged on the prediction: (N, count)."""
    edges = np.stack([p[:, 1] - p[:, 0], p[:, 2] - p[:, 0], p[:, 2] - p[:, 1]], 2)
    length = np.linalg.norm(edges, axis=-1)
    dot = np.einsum("ncix,ncjx->ncij", edges, edges)
    cosine = dot / (length[..., :, None] * length[..., None, :] + 1e-8)
    collinear = (np.abs(cosine) > 0.867).sum((-1, -2)) > 3  # the diagonal is three of them
    too_near = (np.abs(edges) < 0.005).any(2).all(-1)
    return (p[..., 2] > 0.1).all(1) & ~collinear & ~too_near


def robust(pred: np.ndarray, gt: np.ndarray) -> float:
    """Eq. 10 at alpha = 1, c = 2, in metres."""
    e = (gt - pred)[gt > 0]
    return (np.sqrt((e / 2) ** 2 + 1) - 1).mean()


def dynamic(losses: list[float], w: list[float], p: list[float]) -> float:
    """Eq. 11 with learnable weights p, which start at 1."""
    losses, w, p = (np.array(x, float) for x in (losses, w, p))
    return (0.5 / p**2 * (w * losses) + np.log(1 + p**2)).sum()
