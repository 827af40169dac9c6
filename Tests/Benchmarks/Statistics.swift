// SPDX-License-Identifier: Apache-2.0

/// The middle of some numbers; of an even count the upper of the two. Zero if there are none.
func median(_ values: [Double]) -> Double { percentile(values, 0.5) }

/// The value below which the given part of the numbers lies.
func percentile(_ values: [Double], _ part: Double) -> Double {
    guard !values.isEmpty else { return 0 }
    let index = Int(Double(values.count) * part)
    return values.sorted()[min(index, values.count - 1)]
}

/// A size as people say it.
func sizeName(_ bytes: Int) -> String {
    switch bytes {
    case (1 << 20)...: "\(bytes >> 20) MiB"
    case (1 << 10)...: "\(bytes >> 10) KiB"
    default: "\(bytes) B"
    }
}

extension Double {
    /// Three figures that count, and no more digits than these take.
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
