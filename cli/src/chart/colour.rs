//! Colours, each for light and for dark pages, told apart by people who do not see all colours.

/// A colour on white and on black, as `#rrggbb`.
#[derive(Clone, Debug, PartialEq)]
pub struct Colour {
    /// On a light page.
    pub light: String,
    /// On a dark page.
    pub dark: String,
}

impl Colour {
    /// Sets the variables that the class `ink` paints with.
    pub fn style(&self) -> String {
        format!("--l:{};--d:{}", self.light, self.dark)
    }
}

/// Okabe and Ito, *Color Universal Design* (2008), without the yellow, which is no line on white; on dark pages lighter.
const CATEGORIES: [(&str, &str); 7] = [
    ("#0072b2", "#4aa8e0"),
    ("#d55e00", "#f08a3c"),
    ("#009e73", "#35c79b"),
    ("#b0578f", "#e08fc0"),
    ("#7a6a00", "#d9c34a"),
    ("#3aa0d8", "#8fd0f5"),
    ("#55585c", "#c2c5c9"),
];

/// How many categories look different.
pub const CATEGORY_COUNT: usize = CATEGORIES.len();

/// The colour of the i-th of several things without an order.
pub fn category(i: usize) -> Colour {
    let (light, dark) = CATEGORIES[i % CATEGORIES.len()];
    Colour { light: light.to_string(), dark: dark.to_string() }
}

/// The colour of what is off: it recedes.
pub fn quiet() -> Colour {
    Colour { light: "#b4b7bb".to_string(), dark: "#5a5f66".to_string() }
}

/// From cold to hot: blue and red are told apart by everybody, and between them lies grey.
const COLD_TO_HOT: [([u8; 3], [u8; 3]); 5] = [
    ([0x25, 0x4e, 0x92], [0x4f, 0x8b, 0xdc]),
    ([0x6c, 0xa3, 0xcd], [0x93, 0xc4, 0xe6]),
    ([0xab, 0xa4, 0x9a], [0xbd, 0xb6, 0xab]),
    ([0xe2, 0x8b, 0x5a], [0xf0, 0xa0, 0x70]),
    ([0xac, 0x2a, 0x2f], [0xe4, 0x55, 0x52]),
];

/// The colour at a place between cold (0) and hot (1).
pub fn heat(place: f64) -> Colour {
    let place = place.clamp(0.0, 1.0) * (COLD_TO_HOT.len() - 1) as f64;
    let below = (place as usize).min(COLD_TO_HOT.len() - 2);
    let (from, to) = (COLD_TO_HOT[below], COLD_TO_HOT[below + 1]);
    let mix = |a: [u8; 3], b: [u8; 3]| {
        let part = |i: usize| (f64::from(a[i]) + (f64::from(b[i]) - f64::from(a[i])) * (place - below as f64)) as u8;
        format!("#{:02x}{:02x}{:02x}", part(0), part(1), part(2))
    };
    Colour { light: mix(from.0, to.0), dark: mix(from.1, to.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_blue_and_red() {
        assert_eq!((heat(0.0).light, heat(1.0).light), ("#254e92".into(), "#ac2a2f".into()));
        assert_eq!(heat(0.5).dark, "#bdb6ab");
        assert_eq!(category(0), category(CATEGORY_COUNT));
    }
}
