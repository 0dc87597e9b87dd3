// As much JSON as the protocol needs: an object's text, numbers and flags by key. What is nested is skipped.
#pragma once

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

namespace t2v::json {

inline std::string quote(std::string_view text) {
    static constexpr char hex[] = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) < 0x20) {
            out += "\\u00";
            out += hex[c >> 4];
            out += hex[c & 15];
        } else {
            out += c;
        }
    }
    return out + '"';
}

class Object {
  public:
    // Throws std::invalid_argument for what is no object of at most eight levels.
    explicit Object(std::string_view text) : rest_(text) {
        space();
        take('{');
        read_members(1);
        space();
        if (!rest_.empty()) wrong();
    }

    std::string text(const std::string& key) const {
        const auto found = values_.find(key);
        return found == values_.end() ? std::string() : found->second;
    }

    double number(const std::string& key, double absent = 0) const {
        const auto found = values_.find(key);
        return found == values_.end() ? absent : std::strtod(found->second.c_str(), nullptr);
    }

  private:
    [[noreturn]] static void wrong() { throw std::invalid_argument("the server sent a text that is no JSON object"); }

    void space() {
        while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t' || rest_[0] == '\n' || rest_[0] == '\r')) next();
    }
    char next() {
        if (rest_.empty()) wrong();
        const char c = rest_[0];
        rest_.remove_prefix(1);
        return c;
    }
    void take(char c) {
        if (next() != c) wrong();
    }
    bool comes(char c) {
        space();
        if (rest_.empty() || rest_[0] != c) return false;
        next();
        return true;
    }

    void read_members(int depth) {
        if (comes('}')) return;
        do {
            space();
            take('"');
            const std::string key = read_string();
            space();
            take(':');
            const std::string value = read_value(depth);
            if (depth == 1) values_[key] = value;
        } while (comes(','));
        space();
        take('}');
    }

    std::string read_value(int depth) {
        if (depth > 8) wrong();
        if (comes('"')) return read_string();
        if (comes('{')) {
            read_members(depth + 1);
            return {};
        }
        if (comes('[')) {
            if (comes(']')) return {};
            do {
                read_value(depth + 1);
            } while (comes(','));
            space();
            take(']');
            return {};
        }
        std::string word;  // a number, true, false or null: of no consequence where it is none of these
        const auto is_part = [](char c) {
            return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '+' || c == '.';
        };
        while (!rest_.empty() && is_part(rest_[0])) word += next();
        if (word.empty()) wrong();
        return word == "null" ? std::string() : word;
    }

    std::string read_string() {
        std::string out;
        while (true) {
            char c = next();
            if (c == '"') return out;
            if (static_cast<unsigned char>(c) < 0x20) wrong();
            if (c != '\\') {
                out += c;
                continue;
            }
            c = next();
            static constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
            if (const std::size_t at = names.find(c); at != std::string_view::npos) {
                out += meant[at];
            } else if (c == 'u') {
                std::uint32_t point = read_hex();
                if (point >= 0xD800 && point < 0xDC00) {
                    take('\\');
                    take('u');
                    const std::uint32_t low = read_hex();
                    if (low < 0xDC00 || low >= 0xE000) wrong();
                    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
                } else if (point >= 0xDC00 && point < 0xE000) {
                    wrong();
                }
                append(out, point);
            } else {
                wrong();
            }
        }
    }

    std::uint32_t read_hex() {
        std::uint32_t value = 0;
        for (int i = 0; i < 4; ++i) {
            const char c = next();
            if (!std::isxdigit(static_cast<unsigned char>(c))) wrong();
            value = value << 4 | static_cast<std::uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        }
        return value;
    }

    static void append(std::string& out, std::uint32_t point) {
        const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
        if (point < 0x80) {
            out += static_cast<char>(point);
        } else if (point < 0x800) {
            out += static_cast<char>(0xC0 | point >> 6), tail(0);
        } else if (point < 0x10000) {
            out += static_cast<char>(0xE0 | point >> 12), tail(6), tail(0);
        } else {
            out += static_cast<char>(0xF0 | point >> 18), tail(12), tail(6), tail(0);
        }
    }

    std::string_view rest_;
    std::map<std::string, std::string> values_;
};

}  // namespace t2v::json
