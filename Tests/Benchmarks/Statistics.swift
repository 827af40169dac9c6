// SPDX-License-Identifier: Apache-2.0

/// The median of the values, the upper of the two for an even count, or zero without values.
func median(_ values: [Double]) -> Double { percentile(values, 0.5) }

/// The value below which a fraction of the values lies.
func percentile(_ values: [Double], _ fraction: Double) -> Double {
    guard !values.isEmpty else { return 0 }
    let index = Int(Double(values.count) * fraction)
    return values.sorted()[min(index, values.count - 1)]
}

/// A size in B, KiB or MiB.
func sizeName(_ bytes: Int) -> String {
    switch bytes {
    case (1 << 20)...: "\(bytes >> 20) MiB"
    case (1 << 10)...: "\(bytes >> 10) KiB"
    default: "\(bytes) B"
    }
}

extension Double {
    /// The number with three significant digits, at most two of them after the decimal point.
    var short: String {
        if !isFinite { return "-" }
        let size = magnitude
        let digits = size >= 100 || size == 0 ? 0 : size >= 10 ? 1 : 2
        let scale = digits == 0 ? 1.0 : digits == 1 ? 10 : 100
        let scaled = Int((self * scale).rounded())
        if digits == 0 { return "\(scaled)" }
        let sign = scaled < 0 ? "-" : ""
        let whole = abs(scaled) / Int(scale)
        let rest = "\(abs(scaled) % Int(scale))"
        return "\(sign)\(whole).\(String(repeating: "0", count: digits - rest.count))\(rest)"
    }
}

extension Duration {
    var inSeconds: Double { self / .seconds(1) }
    var inMicroseconds: Double { self / .microseconds(1) }
}
