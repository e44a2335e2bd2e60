"""Diagrams: boxes and arrows, and the networks of both domains drawn with them.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.plotting.axes import DOMAIN_STYLES, OTHERS, one_axes, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Diagram", "plot_networks"]

SYNTHETIC, OBSERVED, COMMON = DOMAIN_STYLES["synth"][1], DOMAIN_STYLES["obs"][1], OTHERS[0]
SIZE = (12.8, 5.4)


class Diagram:
    """Boxes and arrows on a plane with one unit per inch.

    Parameters
    ----------
    ax : `~matplotlib.axes.Axes`
        To draw on; its own frame goes.
    width, height : float
        Of the plane.

    Examples
    --------
    ::

        diagram = Diagram(ax, 4, 1)
        diagram.box("labels", 0.8, 0.5, "labels", "C0", data=True)
        diagram.box("emulator", 2.8, 0.5, "emulator", "C0")
        diagram.arrow("labels", "emulator")
    """

    def __init__(self, ax: Axes, width: float, height: float):
        self.ax = ax
        ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        ax.axis("off")
        self.boxes: dict[str, tuple[float, float, float, float]] = {}

    def box(
        self,
        name: str,
        x: float,
        y: float,
        text: str,
        color: str,
        *,
        width: float = 1.15,
        height: float = 0.52,
        data: bool = False,
        fontsize: float = 9.5,
    ) -> None:
        """Draw a box; rounded and white for data, filled for functions.

        Parameters
        ----------
        name : str
            By which arrows know it.
        x, y : float
            Its centre.
        text : str
            Within.
        color : str
            Of its edge.
        width, height : float, optional
            Its size.
        data : bool, optional
            Whether it stands for data. Default: for a function.
        fontsize : float, optional
            Of the text, in points.

        Examples
        --------
        ::

            diagram.box("x", 1, 1, "spectrum", "C3", data=True)
        """
        plt = pyplot()
        self.ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, zorder=3, linespacing=1.25)
        style = "round,pad=0,rounding_size=0.2" if data else "square,pad=0"
        face = "white" if data else plt.matplotlib.colors.to_rgba(color, 0.18)
        corner = x - width / 2, y - height / 2
        self.ax.add_patch(
            plt.matplotlib.patches.FancyBboxPatch(
                corner, width, height, boxstyle=style, lw=1.2, zorder=2, edgecolor=color, facecolor=face
            )
        )
        self.boxes[name] = (x, y, width, height)

    def arrow(
        self,
        start: str,
        stop: str,
        *,
        color: str = "0.45",
        width: float = 1.1,
        line: str = "-",
        text: str | None = None,
        sides: str | None = None,
        shift: float = 0.0,
    ) -> None:
        """Draw an arrow between the facing sides of two boxes.

        Parameters
        ----------
        start, stop : str
            Names of the boxes.
        color, width, line : optional
            As Matplotlib takes them.
        text : str, optional
            Above its middle.
        sides : {"across", "down"}, optional
            Whether it leaves to the side or up and down. Default: to the side, unless one box is above the other.
        shift : float, optional
            By how much its head is moved to the right.

        Examples
        --------
        ::

            diagram.arrow("labels", "emulator", text="networks")
        """
        (x0, y0, *_), (x1, y1, *_) = self.boxes[start], self.boxes[stop]
        across = sides == "across" or (sides is None and abs(x1 - x0) > 0.3)
        points = []
        for name, sign in ((start, 1), (stop, -1)):
            x, y, w, h = self.boxes[name]
            if across:
                points.append((x + sign * np.sign(x1 - x0) * w / 2, y))
            else:
                points.append((x, y + sign * np.sign(y1 - y0) * h / 2))
        points[1] = (points[1][0] + shift, points[1][1])
        self.path(points, color=color, width=width, line=line)
        if text:
            middle = np.mean(points, axis=0)
            self.note(middle[0], middle[1] + 0.09, text, va="bottom", fontsize=8.5)

    def path(
        self,
        points: Sequence[tuple[float, float]],
        *,
        color: str = "0.45",
        width: float = 1.1,
        line: str = "-",
    ) -> None:
        """Draw a line along some points, with an arrow's head at the last.

        Parameters
        ----------
        points : sequence of (float, float)
            Two or more.
        color, width, line : optional
            As Matplotlib takes them.

        Examples
        --------
        ::

            diagram.path([(1, 1), (1, 2), (3, 2)])
        """
        if len(points) > 2:
            self.ax.plot(*np.transpose(points[:-1]), color=color, lw=width, ls=line, zorder=1)
        style = {"arrowstyle": "-|>", "color": color, "lw": width, "ls": line, "shrinkA": 0, "shrinkB": 0}
        self.ax.annotate("", points[-1], points[-2], zorder=1, arrowprops=style | {"mutation_scale": 11})

    def note(self, x: float, y: float, text: str, **options: Any) -> None:
        """Write a text.

        Parameters
        ----------
        x, y : float
            Where; its centre, unless options say otherwise.
        text : str
            What.
        **options
            Of `matplotlib.axes.Axes.text`.

        Examples
        --------
        ::

            diagram.note(0.3, 0.2, "rounded: data", ha="left")
        """
        self.ax.text(x, y, text, **({"ha": "center", "va": "center", "fontsize": 9, "color": "0.3"} | options))


def plot_networks(settings: NetworkSettings | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the networks of both domains with their critics, and the size of each (S1, Figure 3).

    Parameters
    ----------
    settings : `~cyclestarnet.NetworkSettings`, optional
        Whose sizes are written. Default: the paper's; those of a model are ``model.translator.network.settings``.
    ax : `~matplotlib.axes.Axes`, optional
        Default: a new figure.

    Returns
    -------
    `~matplotlib.axes.Axes`
        Without a frame.

    See Also
    --------
    cyclestarnet.NetworkSettings.to_table : the same sizes layer by layer.

    Examples
    --------
    ::

        plot_networks(model.translator.network.settings).figure.savefig("networks.pdf")
    """
    s = NetworkSettings() if settings is None else settings
    d = Diagram(one_axes(ax, SIZE), *SIZE)
    synth, shared, obs, split = 4.35, 3.15, 1.95, 0.85
    data, encoder, inner, latent, decoder, outer, made, critic = 0.8, 2.35, 3.9, 5.45, 7.0, 8.55, 10.1, 11.9

    def layers(sizes: Sequence[tuple[int, int, int]]) -> str:
        return "-".join(str(filters) for filters, *_ in sizes)

    def network(name: str, x: float, y: float, symbol: str, sizes: str, color: str, **options: Any) -> None:
        d.box(name, x, y, f"${symbol}$\n{sizes}", color, width=1.2, height=0.62, **options)

    for domain, y, color, text in (("synth", synth, SYNTHETIC, "synthetic"), ("obs", obs, OBSERVED, "observed")):
        d.box(f"x_{domain}", data, y, f"{text}\n{s.n_pixels} pixels", color, data=True, height=0.62)
        network(f"e_{domain}", encoder, y, rf"E_\mathrm{{{domain}}}", layers(s.domain), color)
        network(f"d_{domain}", outer, y, rf"D_\mathrm{{{domain}}}", layers(s.domain[::-1]) + "-1", color)
        d.box(f"made_{domain}", made, y, f"{text}:\nreconstructed\nor translated", color, data=True, height=0.78)
        d.arrow(f"x_{domain}", f"e_{domain}")
        d.arrow(f"d_{domain}", f"made_{domain}")
        d.box(
            f"c_{domain}", critic, y, rf"critic $C_\mathrm{{{domain}}}$" "\n" f"spectrum {layers(s.critic_spectrum)}\n"
            f"latent {layers(s.critic_latent)}", color, width=1.75, height=0.82, fontsize=8.5,
        )  # fmt: skip
        d.arrow(f"made_{domain}", f"c_{domain}")
    network("e_sh", inner, shared, r"E_\mathrm{sh}", layers(s.shared), COMMON)
    network("d_sh", decoder, shared, r"D_\mathrm{sh}", layers(s.shared[::-1]), COMMON)
    size = {"data": True, "height": 0.78}
    d.box(
        "z_sh",
        latent,
        shared,
        f"shared latent\n$z_\\mathrm{{sh}}$\n{s.shared_filters} × {s.latent_length}",
        COMMON,
        **size,
    )
    routes = [("e_synth", "e_sh"), ("e_obs", "e_sh"), ("e_sh", "z_sh"), ("z_sh", "d_sh")]
    routes += [("d_sh", "d_synth"), ("d_sh", "d_obs")]
    below = latent, shared - 0.39
    if s.split_filters:
        network("e_sp", inner, split, r"E_\mathrm{sp}", layers(s.split), OBSERVED)
        network("d_sp", decoder, split, r"D_\mathrm{sp}", layers(s.split[::-1]), OBSERVED)
        text = f"split latent\n$z_\\mathrm{{sp}}$\n{s.split_filters} × {s.latent_length}"
        d.box("z_sp", latent, split, text, OBSERVED, **size)
        routes += [("e_obs", "e_sp"), ("e_sp", "z_sp"), ("z_sp", "d_sp"), ("d_sp", "d_obs")]
        below = latent, split - 0.39
    for start, stop in routes:
        d.arrow(start, stop)
    top, bottom = 5.05, 0.2
    dotted = {"line": ":", "color": "0.3"}
    d.path([(latent, shared + 0.39), (latent, top), (critic, top), (critic, synth + 0.41)], **dotted)
    d.path([below, (latent, bottom), (critic, bottom), (critic, obs - 0.41)], **dotted)
    d.note(8.0, top + 0.13, r"$z_\mathrm{sh}$ of the same spectra", fontsize=8.5)
    joined = r"$z_\mathrm{sh} \oplus z_\mathrm{sp}$" if s.split_filters else r"$z_\mathrm{sh}$"
    d.note(8.0, bottom + 0.13, f"{joined} of the same spectra", fontsize=8.5)
    d.note(0.25, 0.42, "rounded: data; filled: networks,\nwith the filters of their layers", ha="left", fontsize=8.5)
    return d.ax
